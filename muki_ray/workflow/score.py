"""Evidence and supervision: score what is missing, integrate, declare complete."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from muki_ray.learned import must_learn
from muki_ray.pipeline import (
    IntegrationTask,
    finish_evidence,
    finish_supervision,
    learn_from_corpus,
    run_graph,
    score,
    supervision_folder,
)
from muki_ray.progress import Progress
from muki_ray.runtime import listening
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import Folder
from muki_ray.workflow.plan import Plan
from muki_ray.workflow.run import Run


def score_and_integrate(run: Run, plan: Plan) -> tuple[Folder, dict[str, Any]]:
    """Evidence and supervision, from the store where they are there."""
    config, tasks, waves = run.config, list(plan.tasks), plan.waves
    total = sum(c.rows_out for c in run.corpora) * len(tasks)
    waiting = sum(rows > 0 for rows in plan.to_score.values())
    folder = supervision_folder(tasks, run.space, config.method, run.folder)
    facts = folder.manifest()
    began = time.monotonic()
    reused = total - sum(plan.to_score.values())
    done = reused
    with Progress(f"scoring ({waiting} of {len(tasks)} teachers)", total, skip=reused) as progress:

        def handle(kind: str, content: Any) -> None:
            nonlocal done
            if kind == "scored":
                done += content[1]
                progress.update(done)

        progress.update(reused)
        with listening(handle) as messenger:
            task = IntegrationTask(tuple(tasks), run.space, config.method, folder)
            # what learns from the corpus must have seen it: then integration is a pass of its own, without models
            alone = facts is None and must_learn(config.method)
            scored = score(tasks, waves if alone else waves[:-1], messenger)
            if alone:
                finish_evidence(tasks)
                task = replace(task, learned=learn_from_corpus(task))
            last, integrated = run_graph(
                tasks, waves[-1] if waves and not alone else [], task if facts is None else None, messenger
            )
            scored = {name: scored.get(name, 0) + last.get(name, 0) for name in {*scored, *last}}
            finish_evidence(tasks)
            if facts is None:
                assert integrated is not None
                facts = finish_supervision(task, integrated)
        progress.update(total)
    seconds = time.monotonic() - began
    fresh = sum(scored.values())
    run.metrics["rows"] = {"scored": {task.name: scored.get(task.name, 0) for task in tasks}}
    run.tracker.metrics(
        {"scoring": {"rows": fresh, "seconds": seconds, "rows_per_s": fresh / seconds if fresh else None}}
    )
    return folder, facts


def corpus_facts(run: Run, statistics: CorpusStatistics) -> dict[str, Any]:
    """What the corpus looks like to the teachers."""
    rows = max(1, statistics.rows)
    names = run.space.teachers
    return {
        "teacher_share": {n: int(w) / rows for n, w in zip(names, statistics.won_M, strict=True)},
        "mean_score": {n: float(s) / rows for n, s in zip(names, statistics.score_sum_M, strict=True)},
        "mean_margin": statistics.margin_mean,
    }
