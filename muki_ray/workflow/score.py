"""Evidence and supervision: score what is missing, integrate, declare complete."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from muki_ray.learned import must_learn
from muki_ray.pipeline import (
    IntegrationTask,
    ScoringTask,
    finish_evidence,
    finish_supervision,
    learn_from_corpus,
    run_graph,
    score,
    supervision_folder,
)
from muki_ray.progress import Progress
from muki_ray.runtime import Cluster, Messenger, listening
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import Folder, fingerprint
from muki_ray.workflow.embed import embedder, reads
from muki_ray.workflow.plan import Plan
from muki_ray.workflow.run import Run


class Scoring:
    """Scoring's progress, from what the actors say; `finish` records what was scored.

    Attributes:
        shown: whether its line is drawn; False while something else has the terminal.
    """

    def __init__(self, run: Run, plan: Plan, progress: Progress) -> None:
        self.run, self.plan, self.progress, self.shown = run, plan, progress, True
        self.total, self.done = total_rows(plan), sum(plan.stored.values())
        self.began = time.monotonic()
        progress.update(self.done)

    def handle(self, kind: str, content: Any) -> None:
        """Count rows of a message."""
        if kind == "scored":
            self.done += content[1]
            if self.shown:
                self.progress.update(self.done)

    def finish(self, scored: Mapping[str, int]) -> None:
        """All is there; `scored`: rows by teacher, in this run."""
        self.progress.update(self.total)
        seconds, fresh = time.monotonic() - self.began, sum(scored.values())
        self.run.metrics["rows"] = {"scored": {t.name: scored.get(t.name, 0) for t in self.plan.tasks}}
        self.run.tracker.metrics(
            {
                "scoring": {
                    "rows": fresh,
                    "seconds": seconds,
                    "rows_per_s": fresh / seconds if fresh else None,
                }
            }
        )


def total_rows(plan: Plan) -> int:
    """Rows of all teachers, over all corpora."""
    return sum(plan.stored.values()) + sum(plan.to_score.values())


@contextmanager
def scoring(run: Run, plan: Plan) -> Iterator[tuple[Scoring, Messenger]]:
    """What actors tell while they score, on one line of progress."""
    waiting = sum(rows > 0 for rows in plan.to_score.values())
    name = f"scoring ({waiting} of {len(plan.tasks)} teachers)"
    with Progress(name, total_rows(plan), skip=sum(plan.stored.values())) as progress:
        stage = Scoring(run, plan, progress)
        with listening(stage.handle) as messenger:
            yield stage, messenger


def integration(run: Run, tasks: Sequence[ScoringTask]) -> IntegrationTask:
    """What makes supervision of the teachers' evidence, as the configuration says."""
    first = run.first_shards
    method = run.config.method
    base = fingerprint([run.student.content, run.student.max_length]) if reads(method) else None
    folder = supervision_folder(tasks, run.space, method, run.folder, first, base)
    return IntegrationTask(tuple(tasks), run.space, run.config.method, folder, first=first)


def score_and_integrate(run: Run, plan: Plan, cluster: Cluster) -> tuple[Folder, dict[str, Any]]:
    """Evidence and supervision, from the store where they are there."""
    tasks, waves, task = list(plan.tasks), plan.waves, integration(run, plan.tasks)
    facts = task.folder.manifest()
    with scoring(run, plan) as (stage, messenger):
        # what learns from the corpus must have seen it: then integration is a pass of its own, without models
        alone = facts is None and must_learn(run.config.method)
        scored = score(tasks, waves if alone else waves[:-1], messenger)
        if alone:
            finish_evidence(tasks)
            config = run.config
            embed = embedder(config.method, run.student, config.training, cluster)
            task = replace(task, learned=learn_from_corpus(task, embed))
        last, integrated = run_graph(
            tasks, waves[-1] if waves and not alone else [], task if facts is None else None, messenger
        )
        finish_evidence(tasks)
        if facts is None:
            assert integrated is not None
            facts = finish_supervision(task, integrated)
        stage.finish({name: scored.get(name, 0) + last.get(name, 0) for name in {*scored, *last}})
    return task.folder, facts


def corpus_facts(run: Run, statistics: CorpusStatistics) -> dict[str, Any]:
    """What the corpus looks like to the teachers."""
    rows = max(1, statistics.rows)
    names = run.space.teachers
    return {
        "teacher_share": {n: int(w) / rows for n, w in zip(names, statistics.won_M, strict=True)},
        "mean_score": {n: float(s) / rows for n, s in zip(names, statistics.score_sum_M, strict=True)},
        "mean_margin": statistics.margin_mean,
    }
