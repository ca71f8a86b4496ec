"""One run from configuration to product: inspect, normalise, score, integrate, train, evaluate, report.

Each stage leaves its result in the run folder under a fingerprint; a stage whose result is there does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from muki_ray import filesystem as locations
from muki_ray.config import IntegrateConfig, to_yaml
from muki_ray.corpus import Corpus
from muki_ray.errors import ConfigError
from muki_ray.labels import LabelSpace
from muki_ray.learned import Learned
from muki_ray.pipeline import ScoringTask, scoring_task
from muki_ray.planning import on_gpu
from muki_ray.progress import say
from muki_ray.report.plan import plan_lines
from muki_ray.runtime import Cluster, connected, users_errors
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import RunFolder
from muki_ray.student.export import exported
from muki_ray.teachers.spec import TeacherSpec
from muki_ray.tracking import Status, open_tracker
from muki_ray.workflow.conclude import conclude
from muki_ray.workflow.finished import check_made_with
from muki_ray.workflow.learn import check_room, reader, train
from muki_ray.workflow.plan import WORTH_MEASURING, Plan, draw_up, measured
from muki_ray.workflow.prepare import inspect_all, read_corpora, settled
from muki_ray.workflow.run import Run, RunResult
from muki_ray.workflow.score import corpus_facts, score_and_integrate
from muki_ray.workflow.stream import score_and_train, together

__all__ = ["PlanResult", "RunResult", "evaluate", "integrate", "plan"]


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
        UserError: there is no test set, no finished student, or one that was made with other settings.
    """
    if config.corpus.test is None:
        raise ConfigError(
            "evaluation needs a labelled test set; add corpus.test: {path: ..., text: ..., label: ...}"
        )
    student = RunFolder(locations.absolute(config.output)).student
    if exported(student) is None:
        raise ConfigError(
            f"no finished student at {student.shown!r}; run integrate with this configuration first"
        )
    return _execute(config, may_train=False)


@dataclass(frozen=True)
class PlanResult:
    """What a run would do; `summary` is for people."""

    plan: Plan
    summary: str


def plan(config: IntegrateConfig) -> PlanResult:
    """What `integrate` would do and what scoring would cost, after a short look at each kind of teacher.

    Reads the corpus into the run folder, as `integrate` would; writes nothing else there.

    Raises:
        UserError: something the user can mend.
    """
    config = settled(config)
    specs, space, _ = inspect_all(config)
    corpora = read_corpora(config, RunFolder(config.output), space)
    with connected() as cluster, users_errors():
        drawn = draw_up(config, _tasks(config, specs, corpora, cluster), cluster)
        if drawn.waves:
            check_room(config.training, RunFolder(config.output), cluster)
        drawn = measured(drawn)
        return PlanResult(drawn, "\n".join(_lines(drawn, space, cluster)))


def _tasks(
    config: IntegrateConfig, specs: Sequence[TeacherSpec], corpora: Sequence[Corpus], cluster: Cluster
) -> list[ScoringTask]:
    resolved = [
        spec.resolved(on_gpu(teacher, cluster.reach))
        for spec, teacher in zip(specs, config.teachers, strict=True)
    ]
    return [scoring_task(spec, config.method, corpora, RunFolder(config.output)) for spec in resolved]


def _lines(drawn: Plan, space: LabelSpace, cluster: Cluster) -> list[str]:
    return list(plan_lines(drawn, space, cluster.resources, len(cluster.may_add)))


def _execute(config: IntegrateConfig, may_train: bool) -> RunResult:
    config = settled(config)
    folder = RunFolder(config.output)
    specs, space, student = inspect_all(config)
    corpora = read_corpora(config, folder, space)
    tracker = open_tracker(config.tracking, folder)
    touched = may_train  # what is asked of a finished student may be refused, and then changes nothing
    try:
        run = Run(config, folder, specs, space, student, corpora, tracker)
        if may_train:
            _record_inputs(run)
        with connected() as cluster, users_errors():
            if not may_train:
                check_made_with(run, _tasks(config, specs, corpora, cluster), cluster)
                touched = True
                _record_inputs(run)
            result = _stages(run, cluster, may_train)
        tracker.finish("FINISHED")
    except BaseException as error:
        # Ray turns a SIGTERM, with which clusters end a job, into SystemExit
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        tracker.finish(status if touched else "FINISHED")
        raise
    return result


def _record_inputs(run: Run) -> None:
    run.folder.root.write_bytes("config.yaml", to_yaml(run.config).encode())
    run.tracker.params(run.config.model_dump(mode="json"))
    run.tracker.text("config.yaml", to_yaml(run.config))
    run.tracker.tags({f"fingerprint.{spec.name}": spec.fingerprint for spec in run.specs})
    for name, corpus, source in zip(
        ("corpus", "test"), run.corpora, (run.config.corpus, run.config.corpus.test), strict=False
    ):
        run.tracker.corpus(name, corpus.fingerprint, source.path if source is not None else "")


def _stages(run: Run, cluster: Cluster, may_train: bool) -> RunResult:
    config = run.config
    tasks = _tasks(config, run.specs, run.corpora, cluster)
    streaming = together(run, tasks, cluster) if may_train else None
    drawn = streaming.plan if streaming else draw_up(config, tasks, cluster)
    if may_train and drawn.waves:
        check_room(config.training, run.folder, cluster)
    if sum(drawn.to_score.values()) >= WORTH_MEASURING:
        drawn = measured(drawn)
    lines = _lines(drawn, run.space, cluster)
    for line in lines:
        say(line)
    run.tracker.text("plan.txt", "\n".join(lines) + "\n")
    training = exported(run.folder.student)
    if streaming:
        supervision, facts, training = score_and_train(run, replace(streaming, plan=drawn), cluster)
    else:
        supervision, facts = score_and_integrate(run, drawn, cluster)
    statistics = CorpusStatistics.from_json(facts["statistics"])
    run.metrics["rows"] = {
        "in": run.corpus.rows_in,
        "out": facts["rows"],
        "quarantined": run.corpus.quarantined + facts["quarantined"],
        **run.metrics["rows"],
    }
    run.metrics["corpus"] = corpus_facts(run, statistics)
    run.tracker.metrics({"rows": run.metrics["rows"], "corpus": run.metrics["corpus"]})
    if may_train and not streaming:
        training = train(run, reader(run, supervision, facts), cluster)
    assert training is not None
    learned = Learned.read(supervision, facts["learned"])
    return conclude(run, tasks, statistics, learned, training, cluster)
