"""Many teachers on few processors: does the job complete, does a teacher cost what the last one cost, was the plan right?

Small teachers and short texts made on the spot (`toys.py`). One child process asks for the plan, another runs the whole
job - teachers in, student out - on a local Ray with so many logical CPUs. When a teacher was done is the time of its
last evidence file; what a teacher costs is the time between one and the next, for the first and the last quarter of the
teachers but for those that were begun together at the start, and those that end while other actors have nothing left.
The plan's estimate is held against the time from the start of the scoring stage to the last evidence.

    python benchmarks/many_teachers.py [--teachers 100] [--rows 2048] [--cpus 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import toys
import yaml

_LABELS = 3  # of each teacher; the first is also the last of the teacher before


def prepare(scratch: Path, teachers: int, rows: int) -> Path:
    """Models, corpus and configuration."""
    toys.corpus(scratch / "corpus.parquet", rows)
    entries = []
    for m in range(teachers):
        first = m * (_LABELS - 1)
        labels = [f"topic{first + i}" for i in range(_LABELS)]
        toys.classifier(scratch / f"teacher{m}", labels, seed=m)
        entries.append({"name": f"t{m}", "model": str(scratch / f"teacher{m}")})
    config = {
        "teachers": entries,
        "corpus": {"path": str(scratch / "corpus.parquet"), "shard_rows": 1024},
        "student": {"model": str(scratch / "teacher0")},
        "training": {"epochs": 1},
        "output": str(scratch / "run"),
    }
    path = scratch / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def child(verb: str, config: str, cpus: int) -> None:
    """One verb on a Ray of its own; prints JSON."""
    began = time.time()
    from muki_ray import workflow
    from muki_ray.config import load_config
    from muki_ray.runtime import ray

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    if verb == "plan":
        found = workflow.plan(load_config(config))
        estimate = found.plan.estimate
        assert estimate is not None
        print(found.summary, file=sys.stderr)
        facts: dict[str, Any] = {
            "scoring_s": estimate.seconds,
            "cpu_hours": estimate.cpu_hours,
            "pools": sum(map(len, found.plan.waves)),
        }
    else:
        stamps = []
        stage = workflow.score_and_integrate

        def stamped(*arguments: Any) -> Any:
            stamps.append(time.time())
            return stage(*arguments)

        workflow.score_and_integrate = stamped  # type: ignore[attr-defined]
        result = workflow.integrate(load_config(config))
        facts = {"rows": result.metrics["rows"], "scoring_began": stamps[0]}
    print(json.dumps({**facts, "began": began, "seconds": time.time() - began}))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The plan, the run, and how the teachers' costs compare."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        config = prepare(scratch, options.teachers, options.rows)
        plan = _run("plan", config, options.cpus)
        run = _run("integrate", config, options.cpus)
        done = sorted(
            max(part.stat().st_mtime for part in folder.glob("part-*.parquet"))
            for folder in (scratch / "run" / "evidence").iterdir()
        )
        supervised = min(
            part.stat().st_mtime for part in (scratch / "run" / "supervision").glob("*/part-*.parquet")
        )
        scored = sum(run["rows"]["scored"].values())
    quarter, edge = len(done) // 4, options.cpus
    steady = done[edge - 1 : len(done) - edge]
    first, last = steady[quarter] - steady[0], steady[-1] - steady[-1 - quarter]
    scoring = done[-1] - run["scoring_began"]
    return {
        "teachers": options.teachers,
        "rows": options.rows,
        "cpus": options.cpus,
        "rows_scored": scored,
        "complete": scored == options.rows * options.teachers,
        "plan": plan,
        "seconds": run["seconds"],
        "scoring_seconds": scoring,
        "before_scoring_seconds": run["scoring_began"] - run["began"],
        "learning_seconds": supervised - done[-1],
        "quarter_seconds": [first, last],
        "last_quarter_over_first": last / first,
        "plan_over_scoring": plan["scoring_s"] / scoring,
        "done_after_seconds": [round(when - run["scoring_began"], 2) for when in done],
    }


def _run(verb: str, config: Path, cpus: int) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, __file__, "--child", verb, str(config), str(cpus)],
        env=environment,
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    if done.returncode:
        sys.exit(f"error: {verb} ended with code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teachers", type=int, default=100)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--cpus", type=int, default=4)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], int(options.child[2]))
        return
    found = measure(options)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
