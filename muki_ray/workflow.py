"""One run from configuration to product: inspect, normalise, score, integrate, train, evaluate, report.

Each stage leaves its result in the run folder under a fingerprint; a stage whose result is there does nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muki_ray import filesystem as locations
from muki_ray.assess import Classifier, assess, check_test_labels, predict_on_cluster
from muki_ray.config import IntegrateConfig, to_yaml
from muki_ray.corpus import Corpus, normalise
from muki_ray.errors import ConfigError
from muki_ray.evaluation import check_compare_names
from muki_ray.labels import LabelSpace, join, near_collisions
from muki_ray.pipeline import (
    IntegrationTask,
    ScoringTask,
    finish_evidence,
    finish_supervision,
    run_graph,
    score,
    scoring_task,
    supervision_folder,
)
from muki_ray.planning import on_gpu, plan_waves
from muki_ray.progress import Progress, say
from muki_ray.report import draw, results_table, write_report
from muki_ray.report.statistics import CorpusStatistics
from muki_ray.runtime import Cluster, connected, listening
from muki_ray.store import Folder, RunFolder
from muki_ray.student.card import model_card
from muki_ray.student.data import Supervision, plan_split
from muki_ray.student.export import export, exported, finish
from muki_ray.student.loop import TrainingJob
from muki_ray.student.model import StudentSpec, inspect_student
from muki_ray.student.train import train_student, training_name, worker_cpus
from muki_ray.teachers.loading import TeacherSpec, inspect
from muki_ray.tracking import Tracker, open_tracker

_log = logging.getLogger("muki_ray")


@dataclass(frozen=True)
class RunResult:
    """Where the student lies, and what was measured."""

    student: str
    metrics: dict[str, Any]
    summary: str


@dataclass
class _Run:
    """What the stages of one run share."""

    config: IntegrateConfig
    folder: RunFolder
    specs: list[TeacherSpec]
    space: LabelSpace
    student: StudentSpec
    corpora: list[Corpus]
    tracker: Tracker
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def corpus(self) -> Corpus:
        return self.corpora[0]


def integrate(config: IntegrateConfig) -> RunResult:
    """Merge the teachers into one student.

    Raises:
        UserError: something the user can mend; raised before any device is taken wherever it can be known.
    """
    return _execute(config, may_train=True)


def evaluate(config: IntegrateConfig) -> RunResult:
    """Measure the student of a finished run again, on the test set that the configuration names now.

    Only a test set that is new to the run costs teachers' time.

    Raises:
        UserError: there is no test set, or no finished student.
    """
    if config.corpus.test is None:
        raise ConfigError(
            "evaluation needs a labelled test set; add corpus.test: {path: ..., text: ..., label: ...}"
        )
    student = RunFolder(locations.absolute(config.output)).student
    if exported(student) is None:
        raise ConfigError(
            f"no finished student at {student.location!r}; run integrate with this configuration first"
        )
    return _execute(config, may_train=False)


def _execute(config: IntegrateConfig, may_train: bool) -> RunResult:
    config = settled(config)
    folder = RunFolder(config.output)
    specs, space, student = inspect_all(config)
    corpora = read_corpora(config, folder, space)
    folder.root.write_bytes("config.yaml", to_yaml(config).encode())
    tracker = open_tracker(config.tracking, folder)
    try:
        run = _Run(config, folder, specs, space, student, corpora, tracker)
        _record_inputs(run)
        with connected() as cluster:
            result = _stages(run, cluster, may_train)
        tracker.finish("FINISHED")
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    return result


def settled(config: IntegrateConfig) -> IntegrateConfig:
    """The configuration with paths that mean the same in every process.

    Raises:
        ConfigError: a relative output inside a Ray job, whose working directory is a temporary copy; or a name
            to compare with that is taken.
    """
    relative = not locations.scheme(config.output) and not Path(config.output).expanduser().is_absolute()
    if relative and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        raise ConfigError(
            f"output {config.output!r} is relative, but a Ray job runs in a temporary copy of its folder, where results would be lost; "
            "give an absolute path or a URI (output=/shared/run or output=s3://bucket/run)"
        )
    if config.corpus.test is not None:
        check_compare_names(config.corpus.test.compare)
        if len(config.corpus.test.text) != len(config.corpus.text):
            raise ConfigError(
                f"corpus.test.text has {len(config.corpus.test.text)} columns but corpus.text has {len(config.corpus.text)}; "
                "both must be one text or both a pair"
            )
    return config.model_copy(update={"output": locations.absolute(config.output)})


def inspect_all(config: IntegrateConfig) -> tuple[list[TeacherSpec], LabelSpace, StudentSpec]:
    """Teachers, label space and student, checked without weights in memory."""
    specs = [inspect(teacher) for teacher in config.teachers]
    space = join([spec.labels for spec in specs])
    for one, other in near_collisions(space):
        say(
            f"note: labels {one!r} and {other!r} look alike; if they are one, rename one with a teacher's `labels` map"
        )
    student = inspect_student(config.student, max(spec.max_length for spec in specs))
    return specs, space, student


def read_corpora(config: IntegrateConfig, folder: RunFolder, space: LabelSpace) -> list[Corpus]:
    """The corpus, and the test set if there is one, as shards in the run folder."""
    with Progress("reading corpus", config.corpus.limit) as progress:
        corpus = normalise(
            config.corpus,
            folder,
            shard_rows=config.corpus.shard_rows,
            limit=config.corpus.limit,
            progress=progress.update,
        )
        progress.update(corpus.rows_in)
    corpora = [corpus]
    if config.corpus.test is not None:
        test = normalise(
            config.corpus.test, folder, shard_rows=config.corpus.shard_rows, label=config.corpus.test.label
        )
        check_test_labels(test, space)
        corpora.append(test)
    return corpora


def _record_inputs(run: _Run) -> None:
    run.tracker.params(run.config.model_dump(mode="json"))
    run.tracker.text("config.yaml", to_yaml(run.config))
    run.tracker.tags({f"fingerprint.{spec.name}": spec.fingerprint for spec in run.specs})
    for name, corpus, source in zip(
        ("corpus", "test"), run.corpora, (run.config.corpus, run.config.corpus.test), strict=False
    ):
        run.tracker.corpus(name, corpus.fingerprint, source.path if source is not None else "")


def _stages(run: _Run, cluster: Cluster, may_train: bool) -> RunResult:
    config = run.config
    specs = [
        s.resolved(on_gpu(t.resources, cluster.resources))
        for s, t in zip(run.specs, config.teachers, strict=True)
    ]
    tasks = [scoring_task(spec, config.method, run.corpora, run.folder) for spec in specs]
    supervision, facts = _score_and_integrate(run, tasks, cluster)
    statistics = CorpusStatistics.from_json(facts["statistics"])
    run.metrics["rows"] = {
        "in": run.corpus.rows_in,
        "out": facts["rows"],
        "quarantined": run.corpus.quarantined + facts["quarantined"],
        **run.metrics["rows"],
    }
    run.metrics["corpus"] = _corpus_facts(run, statistics)
    run.tracker.metrics({"rows": run.metrics["rows"], "corpus": run.metrics["corpus"]})
    training = _train(run, supervision, facts, cluster) if may_train else exported(run.folder.student)
    assert training is not None
    return _finish(run, tasks, statistics, training, cluster)


def _score_and_integrate(
    run: _Run, tasks: list[ScoringTask], cluster: Cluster
) -> tuple[Folder, dict[str, Any]]:
    """Evidence and supervision, from the store where they are there."""
    config = run.config
    missing = {task.name: task.missing() for task in tasks}
    waiting = [t for t in config.teachers if missing[t.name]]
    rows = {
        task.name: sum(task.corpora[c].rows_per_part[shard] for c, shard in missing[task.name])
        for task in tasks
    }
    total = sum(c.rows_out for c in run.corpora) * len(tasks)
    waves = plan_waves(waiting, cluster.resources, may_grow=cluster.may_grow) if waiting else []
    folder = supervision_folder(tasks, run.space, config.method, run.folder)
    facts = folder.manifest()
    began = time.monotonic()
    reused = total - sum(rows.values())
    done = {"scored": reused, "integrated": 0}
    with Progress(f"scoring ({len(waiting)} of {len(tasks)} teachers)", total, skip=reused) as progress:

        def handle(kind: str, content: Any) -> None:
            if kind == "scored":
                done["scored"] += content[1]
                progress.update(done["scored"])

        progress.update(reused)
        with listening(handle) as messenger:
            scored = score(tasks, waves[:-1], messenger)
            if waves or facts is None:
                task = IntegrationTask(tuple(tasks), run.space, config.method, folder)
                wave = waves[-1] if waves else []
                last, summaries = run_graph(tasks, wave, task if facts is None else None, messenger)
                scored = {name: scored.get(name, 0) + last.get(name, 0) for name in {*scored, *last}}
                finish_evidence(tasks)
                if facts is None:
                    facts = finish_supervision(folder, task, summaries)
            else:
                finish_evidence(tasks)
        progress.update(total)
    seconds = time.monotonic() - began
    fresh = sum(scored.values())
    run.metrics["rows"] = {"scored": {task.name: scored.get(task.name, 0) for task in tasks}}
    run.tracker.metrics(
        {"scoring": {"rows": fresh, "seconds": seconds, "rows_per_s": fresh / seconds if fresh else None}}
    )
    assert facts is not None
    return folder, facts


def _corpus_facts(run: _Run, statistics: CorpusStatistics) -> dict[str, Any]:
    """What the corpus looks like to the teachers."""
    rows = max(1, statistics.rows)
    names = run.space.teachers
    return {
        "teacher_share": {n: int(w) / rows for n, w in zip(names, statistics.won_M, strict=True)},
        "mean_score": {n: float(s) / rows for n, s in zip(names, statistics.score_sum_M, strict=True)},
        "mean_margin": statistics.margin_mean,
    }


def _train(run: _Run, folder: Folder, facts: dict[str, Any], cluster: Cluster) -> str:
    """Train the student, unless it is there already; returns the training's name."""
    config = run.config
    cpus, _ = worker_cpus(config.training, cluster.resources)
    split = plan_split(folder, facts["rows_per_part"], config.training.validation, config.training.seed)
    scale = facts["weight_mean"] if config.method.weights == "normalize" else 1.0
    supervision = Supervision(folder, tuple(facts["rows_per_part"]), split, scale)
    job = TrainingJob(run.student, run.space.names, config.training, supervision, threads=max(1, int(cpus)))
    name = training_name(job, folder.location.rsplit("/", 1)[-1])
    student = run.folder.student
    if exported(student) == name:
        say(f"training: reused, {student.location} is up to date")
        return name
    steps = supervision.steps(config.training.batch_size) * config.training.epochs
    batch = config.training.batch_size
    with Progress("training", split.train_rows * config.training.epochs) as progress:

        def handle(kind: str, content: Any) -> None:
            if kind == "step":
                done, _, metrics = content
                progress.update(
                    min(done * batch, split.train_rows * config.training.epochs),
                    f"KL {metrics['train_kl']:.4f}",
                )
                if done % max(1, steps // 200) == 0 or done == steps:
                    run.tracker.metrics({"training": metrics}, step=done)
            elif kind == "epoch":
                say(
                    f"epoch {content['epoch']}/{config.training.epochs}: train KL {content['train_kl']:.4f}, held-out KL {content['held_out_kl']:.4f}"
                )
                run.tracker.metrics(
                    {
                        "training": {
                            "epoch_train_kl": content["train_kl"],
                            "held_out_kl": content["held_out_kl"],
                        }
                    },
                    step=content["step"],
                )

        with listening(handle) as messenger:
            trained = train_student(
                job, name, run.folder.checkpoints, cluster.resources, cluster.may_grow, messenger
            )
    export(trained.checkpoint, student)
    return name


def _finish(
    run: _Run, tasks: list[ScoringTask], statistics: CorpusStatistics, training: str, cluster: Cluster
) -> RunResult:
    """Evaluate, write card and report, log, and say where everything lies."""
    config, student = run.config, run.folder.student
    assessment = None
    if config.corpus.test is not None:
        with _spoken("evaluating"):
            cpus, gpus = worker_cpus(config.training, cluster.resources)
            others = [Classifier(name, locations.absolute(path) if Path(path).expanduser().is_dir() else path)
                      for name, path in config.corpus.test.compare.items()]  # fmt: skip
            classifiers = [Classifier("student", student.location, run.student.max_length), *others]
            probs = predict_on_cluster(classifiers, run.corpora[1], run.space.names, cpus, gpus)
            assessment = assess(tasks, run.space, config.method, probs)
        run.metrics = {**assessment.metrics, **run.metrics}
    card = model_card(
        run.space.names,
        [{"name": s.name, "model": t.model, "revision": t.revision, "labels": list(s.labels.names)}
         for s, t in zip(run.specs, config.teachers, strict=True)],
        config.student.model,
        config.method.model_dump(mode="json"),
        config.training.model_dump(mode="json"),
        {"rows": run.corpus.rows_out, "fingerprint": run.corpus.fingerprint},
        run.metrics.get("student"),
    )  # fmt: skip
    if exported(student) != training:
        finish(student, training, card, to_yaml(config), {"labels": list(run.space.names)})
        new_student = True
    else:
        student.write_bytes("README.md", card.encode())
        new_student = False
    pictures = draw(
        run.space.teachers,
        run.space.names,
        metrics=run.metrics if assessment else None,
        statistics=statistics,
        scores_NM=assessment.scores_NM if assessment else None,
        owner_N=assessment.owner_N if assessment else None,
        confusion_CC=assessment.confusion_CC if assessment else None,
    )
    write_report(
        run.folder.report, run.metrics, statistics, pictures,
        title=locations.redact(config.output).rstrip("/").rsplit("/", 1)[-1],
        labels=run.space.names, teachers=run.space.teachers,
        top_confusions=assessment.confusions if assessment else (),
        examples=assessment.examples if assessment else (),
        settings=config.model_dump(mode="json"),
    )  # fmt: skip
    run.tracker.metrics(run.metrics)
    for name, png in pictures.items():
        run.tracker.binary(f"report/{name}.png", png)
    run.tracker.binary("report/report.html", run.folder.report.read_bytes("report.html"))
    if config.tracking.log_model and new_student:
        with _spoken("logging the model to MLflow") if run.tracker.run_id else _silent():
            run.tracker.model(student.location)
    return RunResult(student.location, run.metrics, _summary(run, assessment.examples if assessment else []))


def _summary(run: _Run, examples: list[Any]) -> str:
    """What is printed at the end."""
    lines = []
    if "student" in run.metrics:
        lines += [results_table(run.metrics), ""]
        selection = run.metrics["selection"]
        if selection["accuracy"] is not None:
            auroc = f", AUROC {selection['auroc']:.4f}" if selection["auroc"] is not None else ""
            lines += [
                f"right teacher chosen: {selection['accuracy']:.4f}{auroc} ({selection['rows']:,} rows)",
                "",
            ]
        for example in examples:
            text = " ".join(example.text.split())
            lines.append(f"  {text[:76] + '...' if len(text) > 79 else text}")
            lines.append(f"    -> {example.predicted} ({example.confidence:.2f}), labelled {example.gold}")
        lines.append("")
    rows = run.metrics["rows"]
    lines.append(
        f"rows: {rows['in']:,} in, {rows['out']:,} out, {rows['quarantined']:,} quarantined; scored now: {sum(rows['scored'].values()):,}"
    )
    lines.append(f"student: {run.folder.student.location}")
    lines.append(f"report:  {run.folder.report.path('report.html')}")
    if run.tracker.ui_command:
        lines.append(f"MLflow:  {run.tracker.ui_command}")
    return "\n".join(lines)


@contextmanager
def _spoken(what: str) -> Iterator[None]:
    """A line for a stage that has no rows to count."""
    began = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - began:.0f}s")


@contextmanager
def _silent() -> Iterator[None]:
    yield
