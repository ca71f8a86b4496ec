"""Peak memory of a run's driver and actors while it scores, at two sizes of corpus.

Short rows and a small teacher (two layers, hidden 32, made on the spot), so that hundreds of thousands of rows take
minutes; shards of the default size. The run is a process of its own that does what `integrate` does up to the
supervision: reads the corpus, scores, integrates. This process looks at it from outside, twice a second, through
/proc: proportional set size, so that pages which processes share count once. Linux only.

    python benchmarks/pipeline_memory.py ROWS ROWS
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import toys

_EVERY = 0.5  # seconds between two looks
_ACTOR = "ray::MapWorker"  # what Ray calls the processes of an actor pool


def memory_growth(fewer: int, more: int) -> dict[str, Any]:
    """`memory_growth`: peak of driver and actors at `more` rows over that at `fewer`, minus one; `memory`: the peaks."""
    sizes = [peak(rows) for rows in (fewer, more)]
    few, many = (size["driver_mib"] + size["actors_mib"] for size in sizes)
    return {
        "memory_growth": many / few - 1,
        "memory_growth_driver": sizes[1]["driver_mib"] / sizes[0]["driver_mib"] - 1,
        "memory_growth_actors": sizes[1]["actors_mib"] / sizes[0]["actors_mib"] - 1,
        "memory": sizes,
    }


def peak(rows: int) -> dict[str, Any]:
    """Peaks of one run in MiB: of the driver, of all actors together, of Ray's own processes."""
    with tempfile.TemporaryDirectory() as scratch:
        toys.corpus(Path(scratch) / "corpus.parquet", rows)
        toys.classifier(Path(scratch) / "teacher", ["one", "other", "third"])
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, __file__, "--child", scratch],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        most = {"driver": 0.0, "actors": 0.0, "others": 0.0}
        try:
            while child.poll() is None:
                for name, value in look(child.pid).items():
                    most[name] = max(most[name], value)
                time.sleep(_EVERY)
        finally:
            child.kill()
            child.wait()
        if child.returncode:
            sys.exit(f"error: the run over {rows} rows ended with code {child.returncode}")
        seconds = time.monotonic() - began
    return {"rows": rows, **{f"{name}_mib": value for name, value in most.items()}, "seconds": seconds}


def look(pid: int) -> dict[str, float]:
    """MiB now: the process itself, the actors below it, and all other processes below it."""
    found = {"driver": _pss(pid), "actors": 0.0, "others": 0.0}
    for other in _below(pid):
        found["actors" if _title(other).startswith(_ACTOR) else "others"] += _pss(other)
    return found


def _below(pid: int) -> Iterator[int]:
    """Children, their children and so on."""
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in tasks.read_text().split()]
        except OSError:  # it ended meanwhile
            continue
        for child in children:
            yield child
            yield from _below(child)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def score_corpus(scratch: str, then: Callable[[], object] = lambda: None) -> None:
    """The run: from the texts to the supervision. `then` is called while Ray is still there."""
    from muki_ray.config import parse_config
    from muki_ray.pipeline import scoring_task
    from muki_ray.planning import on_gpu
    from muki_ray.runtime import connected
    from muki_ray.store import RunFolder
    from muki_ray.tracking import Tracker
    from muki_ray.workflow.plan import draw_up
    from muki_ray.workflow.prepare import inspect_all, read_corpora, settled
    from muki_ray.workflow.run import Run
    from muki_ray.workflow.score import score_and_integrate

    model = f"{scratch}/teacher"
    config = settled(
        parse_config(
            {
                "teachers": [{"name": "small", "model": model}],
                "corpus": {"path": f"{scratch}/corpus.parquet"},
                "student": {"model": model},
                "method": {"samples": 2},
                "output": f"{scratch}/run",
            }
        )
    )
    folder = RunFolder(config.output)
    specs, space, student = inspect_all(config)
    run = Run(config, folder, specs, space, student, read_corpora(config, folder, space), Tracker())
    with connected() as cluster:
        gpu = on_gpu(config.teachers[0].resources, cluster.resources)
        tasks = [scoring_task(spec.resolved(gpu), config.method, run.corpora, folder) for spec in specs]
        score_and_integrate(run, draw_up(config, tasks, cluster), cluster)
        then()


def main() -> None:
    """Print the peaks at the sizes given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=int, nargs="*", help="two sizes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        score_corpus(options.child)
    elif len(options.rows) == 2:
        print(json.dumps(memory_growth(*options.rows), indent=2))
    else:
        parser.error(f"two sizes are needed, got {options.rows}")


if __name__ == "__main__":
    main()
