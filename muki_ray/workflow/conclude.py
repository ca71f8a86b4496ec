"""The end of a run: evaluate, write card and report, log, say where everything lies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from muki_ray import filesystem as locations
from muki_ray.assess import Assessment, Classifier, assess, predict_where, read_texts
from muki_ray.config import to_yaml
from muki_ray.evaluation import compare_setting
from muki_ray.learned import Learned
from muki_ray.pipeline import ScoringTask
from muki_ray.progress import say
from muki_ray.report import Example, draw, results_table, write_report
from muki_ray.runtime import Cluster
from muki_ray.statistics import CorpusStatistics
from muki_ray.student.card import model_card
from muki_ray.student.export import exported, finish, origin
from muki_ray.student.train import worker_cpus
from muki_ray.workflow.calibrate import temperature_of
from muki_ray.workflow.run import Run, RunResult

_EXAMPLE_WIDTH = 78


def conclude(
    run: Run,
    tasks: list[ScoringTask],
    statistics: CorpusStatistics,
    learned: Learned,
    training: str,
    cluster: Cluster,
) -> RunResult:
    """Evaluate the student, complete its folder, write the report, log everything."""
    student = run.folder.student
    temperature = temperature_of(student)  # of one that was there before this run
    if temperature is not None:
        run.metrics["calibration"] = {"temperature": temperature}
    assessment = _assess(run, tasks, learned, cluster) if run.config.corpus.test is not None else None
    if assessment is not None:
        run.metrics = {**assessment.metrics, **run.metrics}
    fresh = exported(student) != training
    card = _card(run)
    if fresh:
        facts = {"labels": list(run.space.names), **run.metrics.get("calibration", {})}
        finish(student, training, card, to_yaml(run.config), facts)
    else:
        student.write_bytes("README.md", card.encode())
    _report(run, statistics, assessment)
    at = run.metrics.get("calibration", {}).get("temperature")
    version = training if at is None else f"{training} at temperature {at:.6g}"
    if run.config.tracking.log_model and not run.tracker.has_model(version):
        with _spoken("logging the model to MLflow"):
            run.tracker.model(student.location, version)
    return RunResult(student.shown, run.metrics, _summary(run, assessment.examples if assessment else ()))


def _assess(run: Run, tasks: list[ScoringTask], learned: Learned, cluster: Cluster) -> Assessment:
    """Run the student, and the classifiers to compare with, on the test set."""
    test = run.config.corpus.test
    assert test is not None
    with _spoken("evaluating"):
        cpus, gpus = worker_cpus(run.config.training, cluster.reach, cluster.places)
        classifiers = [Classifier("student", run.folder.student.location, run.student.max_length)]
        for name, path in test.compare.items():
            here = Path(path).expanduser().is_dir()
            location = locations.absolute(path) if here else path
            classifiers.append(Classifier(name, location, setting=compare_setting(name)))
        columns = read_texts(run.corpora[1], ["text", "text_pair"] if run.corpora[1].pair else ["text"])
        texts, pairs = columns["text"], columns.get("text_pair")
        probs = predict_where(cluster, classifiers, texts, pairs, run.space.names, cpus, gpus)
        return assess(tasks, run.space, run.config.method, probs, learned)


def _card(run: Run) -> str:
    config = run.config
    return model_card(
        run.space.names,
        [
            {"name": s.name, "model": t.model, "revision": t.revision, "labels": list(s.labels.names)}
            for s, t in zip(run.specs, config.teachers, strict=True)
        ],
        config.student.model,
        config.method.model_dump(mode="json"),
        {**config.training.model_dump(mode="json"), **run.metrics.get("calibration", {})},
        {"rows": run.corpus.rows_out, "fingerprint": run.corpus.fingerprint},
        run.metrics.get("student"),
        grown=origin(run.folder.student).previous is not None,
    )


def _report(run: Run, statistics: CorpusStatistics, assessment: Assessment | None) -> None:
    """Pictures, page and metrics into the run folder, and to MLflow."""
    pictures = draw(
        run.space.teachers,
        run.space.names,
        metrics=run.metrics if assessment else None,
        statistics=statistics,
        scores_NM=assessment.shown_NM if assessment else None,
        owner_N=assessment.owner_N if assessment else None,
        confusion_CC=assessment.confusion_CC if assessment else None,
    )
    write_report(
        run.folder.report,
        run.metrics,
        statistics,
        pictures,
        title=locations.redact(run.config.output).rstrip("/").rsplit("/", 1)[-1],
        labels=run.space.names,
        teachers=run.space.teachers,
        top_confusions=assessment.confusions if assessment else (),
        examples=assessment.examples if assessment else (),
        settings=run.config.model_dump(mode="json"),
        set_aside=_set_aside(run),
    )
    run.tracker.metrics(run.metrics)
    for name, png in pictures.items():
        run.tracker.binary(f"report/{name}.png", png)
    run.tracker.binary("report/report.html", run.folder.report.read_bytes("report.html"))


def _set_aside(run: Run) -> list[str]:
    """Which rows were left out, why, and where they are listed; empty where there are none."""
    named = zip(("corpus", "test set"), run.corpora, strict=False)
    lines = [f"{name}: {corpus.set_aside}" for name, corpus in named if corpus.quarantined]
    later = run.metrics["rows"]["quarantined"] - run.corpus.quarantined
    if later:
        listed = run.folder.supervision("*").sub("quarantine-*.parquet").shown
        rows = "row" if later == 1 else "rows"
        lines.append(
            f"corpus: {later:,} more {rows} set aside (a teacher gave no finite answer), see {listed}"
        )
    return lines


def _summary(run: Run, examples: Sequence[Example]) -> str:
    """What is printed at the end: table, examples, counts, where everything lies."""
    lines = []
    if "student" in run.metrics:
        lines += [results_table(run.metrics), ""]
        outside = run.metrics["rows_outside_union"]
        if outside:
            tested = f"{run.metrics['rows_tested']:,} test rows"
            lines += [f"{outside:,} of {tested} have a label that no teacher knows; they count as wrong", ""]
        selection = run.metrics["selection"]
        if selection["accuracy"] is not None:
            auroc = f", AUROC {selection['auroc']:.4f}" if selection["auroc"] is not None else ""
            rows = f"({selection['rows']:,} test rows)"
            lines += [f"right teacher chosen: {selection['accuracy']:.4f}{auroc} {rows}", ""]
        for example in examples:
            text = " ".join(example.text.split())
            shown = text if len(text) <= _EXAMPLE_WIDTH else text[: _EXAMPLE_WIDTH - 3] + "..."
            lines.append(f"  {shown}")
            lines.append(f"    -> {example.predicted} ({example.confidence:.2f}), labelled {example.gold}")
        lines.append("")
    counts = run.metrics["rows"]
    scored = sum(counts["scored"].values())
    lines.append(
        f"rows:    {counts['in']:,} in, {counts['out']:,} out, {counts['quarantined']:,} quarantined; "
        f"scored now: {scored:,}"
    )
    lines += [f"         {line}" for line in _set_aside(run)]
    lines.append(f"student: {run.folder.student.shown}")
    lines.append(f"report:  {run.folder.report.sub('report.html').shown}")
    if run.tracker.ui_command:
        lines.append(f"MLflow:  {run.tracker.ui_command}")
    return "\n".join(lines)


@contextmanager
def _spoken(what: str) -> Iterator[None]:
    """A line for a stage that has no rows to count."""
    began = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - began:.0f}s")
