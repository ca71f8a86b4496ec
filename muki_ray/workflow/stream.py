"""Scoring and training at the same time: `training.start: streaming`.

Everything goes through the store, as it does one after the other: teachers write evidence, a thread here integrates
shard after shard in the corpus' order, the student reads each as soon as it is there. What is learned from the corpus
comes from its first shards; a run that was killed, or that had to train after all, ends with the same student.

Knows the stages and who may use what of the cluster meanwhile. Training takes its place when every teacher has scored
a shard at least, so that no teacher waits for one that the student holds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from muki_ray.config import TrainingConfig
from muki_ray.embedding_view import Embed
from muki_ray.errors import ResourceError, StoreError
from muki_ray.learned import must_learn
from muki_ray.pipeline import (
    Integrated,
    IntegrationTask,
    Integrator,
    ScoringTask,
    finish_evidence,
    finish_supervision,
    learn_from_corpus,
    score,
)
from muki_ray.planning import light_tasks, total
from muki_ray.progress import say
from muki_ray.runtime import Cluster
from muki_ray.store import Folder, part_name
from muki_ray.student.train import worker_cpus
from muki_ray.workflow.embed import embedder
from muki_ray.workflow.learn import stream_reader, train, trains_here
from muki_ray.workflow.plan import Plan, draw_up
from muki_ray.workflow.run import Run
from muki_ray.workflow.score import integration, scoring
from muki_ray.workflow.sides import Sides, StoppedError

# seconds between two looks for evidence: at first, and at most
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True)
class Together:
    """A plan of scoring that leaves room for the student; `training`, with its share of the CPUs."""

    plan: Plan
    training: TrainingConfig


def together(run: Run, tasks: Sequence[ScoringTask], cluster: Cluster) -> Together | None:
    """How to score and train at once, if that is wanted, possible and of use; else says why not."""
    config = run.config
    if config.training.start == "after":
        return None
    plan = draw_up(config, tasks, cluster)
    if run.first_shards is None:
        say("training: after scoring, for the corpus has no more rows than are learned from first")
        return None
    if not plan.waves or integration(run, plan.tasks).folder.manifest() is not None:
        return None  # the corpus is scored
    here = trains_here(config.training, run.folder, cluster)
    cpus, gpus = worker_cpus(config.training, cluster.reach, cluster.places)
    if config.training.num_cpus is None:
        cpus = max(1.0, float(int(cpus / 2)))
    training = config.training.model_copy(update={"num_cpus": cpus})
    rest = _less(cluster, training.num_workers, cpus, 0.0 if here else gpus)
    plans = []
    if rest is not None and (rest.reach.get("GPU", 0) > 0) == (cluster.reach.get("GPU", 0) > 0):
        with suppress(ResourceError):
            plans.append(draw_up(config, tasks, rest))
    if here:  # this process asks Ray for nothing: where there is no room to spare it shares the teachers'
        plans.append(plan)
    for found in plans:
        if len(found.waves) == 1 and all(len(pool.teachers) == 1 for pool in found.waves[0]):
            return Together(found, training)
    say("training: after scoring, for the cluster does not hold all teachers and the student at once")
    return None


def _less(cluster: Cluster, workers: int, cpus: float, gpus: float) -> Cluster | None:
    """The cluster without so many workers, each on the node with the most CPUs left; None where they do not fit."""
    nodes = [dict(node) for node in cluster.nodes or (cluster.resources,)]
    for _ in range(workers):
        fitting = [node for node in nodes if node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus]
        if not fitting:
            return None
        node = max(fitting, key=lambda one: one.get("CPU", 0))
        node["CPU"] -= cpus
        if gpus:
            node["GPU"] -= gpus
    return replace(cluster, resources=total(nodes), nodes=tuple(nodes))


def score_and_train(run: Run, planned: Together, cluster: Cluster) -> tuple[Folder, dict[str, Any], str]:
    """Evidence, supervision and student at once; the supervision, its manifest and the training's name.

    Raises:
        UserError: what either side met; the other is ended.
    """
    tasks, task = list(planned.plan.tasks), integration(run, planned.plan.tasks)
    first = task.first
    assert first is not None, "`together` sees to that"
    ready: Future[None] = Future()
    with scoring(run, planned.plan) as (stage, messenger):
        sides = Sides(messenger.close)
        try:
            scores = sides.begin(lambda: score(tasks, planned.plan.waves, messenger, sides.stop))
            embed = embedder(run.config.method, run.student, planned.training, cluster, alone=False)
            integrated = sides.begin(
                lambda: _integrate(task, first, ready, scores, sides.stop, cluster, embed)
            )
            either: list[Future[Any]] = [ready, integrated]
            wait(either, return_when=FIRST_COMPLETED)
            if not ready.done():
                integrated.result()  # raises
            stage.shown = False
            supervision = stream_reader(run, task.folder, first, messenger)
            own = replace(run, config=run.config.model_copy(update={"training": planned.training}))
            name = train(
                own, supervision, cluster, lambda: f", {int(100 * stage.done / stage.total)}% scored"
            )
            stage.shown = True
            (task, done), scored = integrated.result(), scores.result()
        except BaseException:
            if sides.failure is not None:
                raise sides.failure from None
            raise
        finally:
            sides.end()
        finish_evidence(tasks)
        facts = finish_supervision(task, done)
        stage.finish(scored)
    return task.folder, facts, name


def _integrate(
    task: IntegrationTask,
    first: int,
    ready: Future[None],
    scores: Future[Any],
    stop: threading.Event,
    cluster: Cluster,
    embed: Embed | None,
) -> tuple[IntegrationTask, Integrated]:
    """Integrate all shards, in their order, as they are scored.

    Args:
        first: shards to learn from.
        embed: see `learn`.
        ready: gets its result when that is known, and they are integrated; with the first shard at the earliest.

    Returns:
        The task with what it learned, and what the shards add up to.
    """
    for shard in range(first):
        _await(task, shard, scores, stop)
    if must_learn(task.method):
        task = replace(task, learned=learn_from_corpus(task, embed))
    integrator = Integrator(task, light_tasks(cluster.resources))
    for shard in range(task.shards):
        _await(task, shard, scores, stop)
        integrator.send(shard)
        if shard + 1 == max(first, 1):
            integrator.wait(0)
            ready.set_result(None)
    integrator.wait(0)
    return task, integrator.done


def _await(task: IntegrationTask, shard: int, scores: Future[Any], stop: threading.Event) -> None:
    """Until every teacher has scored the shard.

    Raises:
        StoreError: scoring has come to its end without it.
    """
    name, pause = part_name(shard), _PAUSE_S
    for one in task.tasks:
        while not one.folders[0].has(name):
            over = scores.done()
            if over and not stop.is_set() and not one.folders[0].has(name):
                raise StoreError(
                    f"all is scored, but {one.folders[0].sub(name).shown} is not there; run again"
                )
            if stop.wait(pause):
                raise StoppedError
            pause = min(2 * pause, _LONGEST_PAUSE_S)
