"""The Ray Data path against a bare loop with the same engine, and its memory against the size of the corpus.

Efficiency: the loop is one process with all threads that reads a shard, scores it and writes the evidence, teacher
after teacher. The Ray path is `muki_ray.pipeline.score` as a run plans it on this machine: actors, driver, evidence
written. Same shards, same settings, same threads in all; each round runs both, one after the other.

    python benchmarks/pipeline.py [--quick] [--device cuda] [--model mpnet] [--layers all|N] [--json FILE]

What is counted: `efficiency` is about the steady state, that is without start-up. Of each teacher the first shard of
each of its actors is left out (of the loop's teachers, the first shard), with the time before it; all else counts,
also the time in which one teacher has finished and another has not. `with_start` counts everything: importing,
starting actors, loading models, all shards; the loop's process has its imports already. Both are rows/s of the Ray
path over rows/s of the loop. The key `efficiency` is the lower one of one teacher and two.

`memory_growth`: see `pipeline_memory.py`, which this calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import workload
from machine import describe, device_of, use_threads
from pipeline_memory import memory_growth

from muki_ray.config import TeacherConfig, TextSource
from muki_ray.config_method import MukiMethod
from muki_ray.corpus import normalise
from muki_ray.pipeline import ScoringTask, score, scoring_task
from muki_ray.planning import PoolPlan, on_gpu, plan_waves
from muki_ray.runtime import connected, listening
from muki_ray.store import RunFolder, part_name
from muki_ray.teachers.evidence import to_table
from muki_ray.teachers.loading import inspect, load
from muki_ray.teachers.scoring import Scorer

LABELS = [["World", "Sports"], ["Business", "Sci/Tech"]]


@dataclass(frozen=True)
class Pace:
    """How a way of scoring did: rows and seconds, of everything and of the steady state."""

    rows: int
    seconds: float
    steady_rows: int
    steady_seconds: float

    @property
    def rate(self) -> float:
        """Rows/s, start-up included."""
        return self.rows / self.seconds

    @property
    def steady(self) -> float:
        """Rows/s without start-up."""
        return self.steady_rows / self.steady_seconds


def bare_loop(tasks: Sequence[ScoringTask], device: torch.device) -> Pace:
    """One process: every teacher, every shard."""
    began = time.perf_counter()
    rows = steady_rows = 0
    steady_seconds = 0.0
    for task in tasks:
        corpus, folder = task.corpora[0], task.folders[0]
        scorer = Scorer(
            load(task.spec, device.type),
            samples=task.samples,
            dropout=task.dropout,
            seed_key=task.spec.fingerprint,
        )
        for shard, size in enumerate(corpus.rows_per_part):
            start = time.perf_counter()
            table = corpus.read(shard)
            evidence = scorer.score(table["text"].to_pylist(), shard=shard)
            folder.write_table(part_name(shard), to_table(table["row_id"].to_numpy(), evidence))
            rows += size
            if shard:
                steady_rows += size
                steady_seconds += time.perf_counter() - start
    return Pace(rows, time.perf_counter() - began, steady_rows, steady_seconds)


def ray_path(tasks: Sequence[ScoringTask], teachers: Sequence[TeacherConfig], device: torch.device) -> Pace:
    """The same work as a run does it. When a shard was finished is the time of its evidence file."""
    with _gpus(device), connected() as cluster, listening(lambda kind, content: None) as messenger:
        waves = plan_waves(teachers, cluster.resources, may_grow=False, nodes=cluster.nodes)
        began = time.perf_counter()
        score(tasks, waves, messenger)
        seconds = time.perf_counter() - began
    pools = {name: pool for wave in waves for pool in wave for name in pool.teachers}
    spans, counted = [], 0
    for task in tasks:
        first, last, rows = _steady(task, pools[task.name])
        spans.append((first, last))
        counted += rows
    every = sum(task.corpora[0].rows_out for task in tasks)
    return Pace(every, seconds, counted, _covered(spans))


@contextmanager
def _gpus(device: torch.device) -> Iterator[None]:
    """Hide the GPU from Ray where the CPU is measured."""
    with patch.dict(os.environ, {} if device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}):
        yield


def _steady(task: ScoringTask, pool: PoolPlan) -> tuple[float, float, int]:
    """When the last actor had its first shard, when the last shard was finished, and the rows in between."""
    corpus, folder = task.corpora[0], task.folders[0]
    times = sorted(
        (Path(folder.path(part_name(shard))).stat().st_mtime, rows)
        for shard, rows in enumerate(corpus.rows_per_part)
    )
    warm = pool.max_actors
    return times[warm - 1][0], times[-1][0], sum(rows for _, rows in times[warm:])


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds in which at least one span is open."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def efficiency(
    options: argparse.Namespace, teachers: int, source: Path, device: torch.device
) -> dict[str, Any]:
    """Rounds of loop and Ray path with so many teachers."""
    base = workload.encoder(options.model)
    configs = [
        TeacherConfig(name=f"t{m}", model=str(workload.classifier(base, LABELS[m], m)))
        for m in range(teachers)
    ]
    method = MukiMethod.model_validate({"samples": options.samples, "dropout": _dropout(options.layers)})
    with tempfile.TemporaryDirectory() as scratch:

        def tasks(name: str) -> list[ScoringTask]:
            """The work, in a run folder of its own."""
            run = RunFolder(f"{scratch}/{name}")
            corpus = normalise(TextSource(path=[str(source)]), run, shard_rows=options.shard_rows)
            specs = [inspect(c).resolved(on_gpu(c.resources, _resources(device))) for c in configs]
            return [scoring_task(spec, method, [corpus], run) for spec in specs]

        rounds = []
        for number in range(options.rounds):
            use_threads()
            loop = bare_loop(tasks(f"loop{number}"), device)
            rounds.append((loop, ray_path(tasks(f"ray{number}"), configs, device)))
    return {
        "efficiency": statistics.median(ray.steady / loop.steady for loop, ray in rounds),
        "with_start": statistics.median(ray.rate / loop.rate for loop, ray in rounds),
        "rows_per_s": statistics.median(ray.steady for _, ray in rounds),
        "loop_rows_per_s": statistics.median(loop.steady for loop, _ in rounds),
        "ray_seconds": statistics.median(ray.seconds for _, ray in rounds),
        "loop_seconds": statistics.median(loop.seconds for loop, _ in rounds),
    }


def _dropout(layers: str | None) -> dict[str, Any]:
    return {} if layers is None else {"layers": layers if layers == "all" else int(layers)}


def _resources(device: torch.device) -> dict[str, float]:
    return {"GPU": 1.0} if device.type == "cuda" else {}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    device = device_of(options.device)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "texts.parquet"
        pq.write_table(pa.table({"text": workload.texts(options.rows, options.data)}), source)
        for teachers, name in ((1, "one_teacher"), (2, "two_teachers")):
            found[name] = efficiency(options, teachers, source, device)
            print(line(name, found[name]), flush=True)
    found["efficiency"] = min(found["one_teacher"]["efficiency"], found["two_teachers"]["efficiency"])
    if not options.no_memory:
        found |= memory_growth(*options.memory_rows)
        print(memory_line(found), flush=True)
    settings = {"rows": options.rows, "shard_rows": options.shard_rows, "rounds": options.rounds}
    return {"pipeline": {**found, **settings}, "machine": describe(device)}


def line(name: str, figures: dict[str, Any]) -> str:
    """One row for people."""
    return (
        f"{name:<13} efficiency {figures['efficiency']:.3f} (with start-up {figures['with_start']:.3f}), "
        f"Ray {figures['rows_per_s']:.1f} rows/s, loop {figures['loop_rows_per_s']:.1f} rows/s; "
        f"in all {figures['ray_seconds']:.0f}s and {figures['loop_seconds']:.0f}s"
    )


def memory_line(figures: dict[str, Any]) -> str:
    """One row for people."""
    sizes = figures["memory"]
    shown = ", ".join(
        f"{size['rows']:,} rows: driver {size['driver_mib']:.0f} + actors {size['actors_mib']:.0f} MiB "
        f"({size['seconds']:.0f}s)"
        for size in sizes
    )
    return f"memory growth {figures['memory_growth']:+.3f}; {shown}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    workload.add_arguments(parser)
    parser.add_argument("--rows", type=int, help="texts per teacher; default 6144, quick 1536")
    parser.add_argument("--shard-rows", type=int, help="default: rows / 12")
    parser.add_argument(
        "--layers", help="stochastic layers: all, or the last so many; default: the package's"
    )
    parser.add_argument("--samples", type=int, default=MukiMethod().samples)
    parser.add_argument("--rounds", type=int, help="of loop and Ray path; default 3, quick 1")
    parser.add_argument("--memory-rows", type=int, nargs=2, help="default 20000 400000, quick 5000 50000")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    options = parser.parse_args()
    options.rows = options.rows or (1536 if options.quick else 6144)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.memory_rows = options.memory_rows or ((5_000, 50_000) if options.quick else (20_000, 400_000))
    options.shard_rows = options.shard_rows or max(1, options.rows // 12)
    workload.quiet()
    figures = measure(options)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
