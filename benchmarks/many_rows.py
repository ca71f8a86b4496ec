"""A million rows through one small teacher: does memory stay, does nothing spill, does the pace hold?

Short rows and a small teacher made on the spot (`toys.py`). The run is a process of its own that does what `integrate`
does up to the supervision; this process looks at it from outside, through /proc: proportional set size of the driver and
of the actors, told apart by how far the run is. When a shard was done is the time of its evidence file. What Ray spilled
to disk is what Ray itself says at the end. Linux only.

    python benchmarks/many_rows.py [--rows 1000000] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import toys
from pipeline_memory import look

_EVERY = 1.0  # seconds between two looks
_PARTS = 10  # the run in tenths


def child(scratch: str) -> None:
    """The run, and what Ray says of spilling when it is done."""
    from pipeline_memory import score_corpus
    from ray._private.internal_api import memory_summary

    score_corpus(scratch, then=lambda: Path(scratch, "ray.txt").write_text(memory_summary(stats_only=True)))


def measure(rows: int) -> dict[str, Any]:
    """Memory and pace, in tenths of the run."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        toys.corpus(scratch / "corpus.parquet", rows)
        toys.classifier(scratch / "teacher", ["one", "other", "third"])
        began = time.time()
        run = subprocess.Popen(
            [sys.executable, __file__, "--child", name],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        looks: list[tuple[float, dict[str, float]]] = []
        try:
            while run.poll() is None:
                looks.append((time.time(), look(run.pid)))
                time.sleep(_EVERY)
        finally:
            run.kill()
            run.wait()
        if run.returncode:
            sys.exit(f"error: the run ended with code {run.returncode}")
        seconds = time.time() - began
        done = sorted(part.stat().st_mtime for part in (scratch / "run" / "evidence").glob("*/part-*"))
        stats = (scratch / "ray.txt").read_text()
        supervised = len(list((scratch / "run" / "supervision").glob("*/part-*")))
    borders = [done[round(tenth * (len(done) - 1) / _PARTS)] for tenth in range(_PARTS + 1)]
    spans = list(itertools.pairwise(borders))
    shards = (len(done) - 1) / _PARTS

    def most(which: str, first: float, last: float) -> float:
        return max((seen[which] for when, seen in looks if first <= when <= last), default=float("nan"))

    drivers = [most("driver", *span) for span in spans]
    rates = [shards / (last - first) * rows / len(done) for first, last in spans]
    return {
        "rows": rows,
        "shards": len(done),
        "shards_integrated": supervised,
        "seconds": seconds,
        "driver_mib": drivers,
        "actors_mib": [most("actors", *span) for span in spans],
        "driver_after_mib": most("driver", borders[-1], began + seconds),
        "rows_per_s": rates,
        "driver_growth": drivers[-1] / drivers[1] - 1,
        "pace_last_over_first": rates[-1] / rates[0],
        "spilled": [line.strip() for line in stats.splitlines() if "pill" in line],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    text = json.dumps(measure(options.rows), indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
