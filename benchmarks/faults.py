"""Faults at any moment: does every run come to its end, with nothing lost, nothing doubled and nothing else than before?

The whole job - three small teachers made on the spot, texts in, student out - is run once undisturbed. Then again and
again, and each time processes are killed, a node vanishes, storage stumbles, at moments drawn from `--seed`; a run whose
driver was killed is given the same command again. Whatever happened, evidence and supervision must then be the undisturbed
run's, byte for byte, and every row of the corpus must be there once. What a teacher's model begins is noted
(`noted_job.py`): what was begun more than once is what a fault cost.

    python benchmarks/faults.py [--seed 0] [--json FILE]

Kinds: `actor`, `worker` (a process that integrates or waits), `node` (a raylet with all its processes), `driver`,
`train worker`, `MLflow server`, `storage` (an S3 server that refuses a burst of requests). Ends with code 1 if a promise
is broken. Takes some ten minutes on two processors.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toys
from faults_job import SHARDS, TEACHERS, Run, mlflow_server, outcome
from nodes import Cluster, Node, kill

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.flaky import FlakyS3, flaky_s3

# requests that go wrong in a row: more than the S3 client's own tries
_BURST = 8
_NODE = {"CPU": 2.0}


@dataclass
class Log:
    """What was done to the runs, and what came of it."""

    rng: random.Random
    faults: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def did(self, kind: str, run: Run) -> None:
        """A fault has happened."""
        self.faults.append({"kind": kind, "run": run.name, "begun": len(run.begun)})
        say(f"  {run.name}: {kind}, {len(run.begun)} of {SHARDS * TEACHERS} shards begun")

    def ended(self, run: Run, reference: dict[str, str]) -> None:
        """A run has come to its end: compare it with the undisturbed one."""
        injected = sum(fault["run"] == run.name for fault in self.faults)
        found = outcome(run, reference)
        again = len(run.begun) - SHARDS * TEACHERS
        whole = found["equal"] and not found["lost"] and not found["duplicated"] and found["student"]
        self.runs.append(
            {"run": run.name, "faults": injected, "shards_again": again, "survived": whole, **found}
        )
        say(f"  {run.name}: {injected} faults, {'survived' if whole else 'BROKEN'}, {again} shards again")


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def of(node: Node, *titles: str) -> list[Any]:
    """Processes of a node by the beginning of what Ray calls them."""
    return [process for process in node.family()[1:] if _title(process).startswith(titles)]


def _title(process: Any) -> str:
    try:
        return str((process.cmdline() or [""])[0])
    except Exception:  # it ended meanwhile
        return ""


def strike(cluster: Cluster, run: Run, log: Log, kind: str, *titles: str) -> None:
    """Kill one process of that kind, as soon as there is one; none left to kill is no fault."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and run.running:
        there = [process for node in cluster.nodes for process in of(node, *titles)]
        if there:
            kill([log.rng.choice(there)])
            log.did(kind, run)
            return
        time.sleep(0.02)


def processes_and_nodes(cluster: Cluster, run: Run, log: Log, reference: dict[str, str]) -> None:
    """An actor, a worker, a node and a train worker, in one run that nobody starts again."""
    run.start(cluster.address)
    first, second, third = sorted(log.rng.uniform(0.1, 0.8) for _ in range(3))
    run.until(first)
    strike(cluster, run, log, "actor", "ray::MapWorker")
    run.until(second)
    strike(cluster, run, log, "worker", "ray::IDLE", "ray::integrate")
    run.until(third)
    victim = cluster.nodes.pop()
    kill(victim.family())
    victim.process.wait()
    log.did("node", run)
    cluster.add(_NODE)
    run.until_said("epoch 1/")
    strike(cluster, run, log, "train worker", "ray::RayTrainWorker", "ray::execute")
    run.finish()
    log.ended(run, reference)


def drivers(cluster: Cluster, run: Run, log: Log, reference: dict[str, str]) -> dict[str, Any]:
    """Killed at half; killed in training; the third time it is left alone. Returns what was scored in all."""
    run.start(cluster.address)
    run.until(0.5)
    run.kill()
    log.did("driver", run)
    first = run.mlflow_run()
    run.start(cluster.address)
    run.until_said("epoch 1/")
    run.kill()
    log.did("driver", run)
    run.start(cluster.address)
    run.finish()
    log.ended(run, reference)
    scored = len(run.begun)
    return {
        "scored_total": scored * run.shard_rows,
        "rows_times_teachers": SHARDS * TEACHERS * run.shard_rows,
        "ratio": scored / (SHARDS * TEACHERS),
        "same_mlflow_run": first == run.mlflow_run(),
    }


def storage_and_server(
    server: FlakyS3, run: Run, log: Log, reference: dict[str, str], folder: Path
) -> dict[str, Any]:
    """Everything on S3, which refuses three bursts of requests; and MLflow's server goes for good in the middle."""
    with mlflow_server(folder) as mlflow:
        run.settings += [f"tracking.uri={mlflow.uri}"]
        run.start("local")
        for moment in sorted(log.rng.uniform(0.05, 0.8) for _ in range(3)):
            run.until(moment)
            server.failing(503, _BURST)
            log.did("storage", run)
        mlflow.kill()
        log.did("MLflow server", run)
        run.finish()
        first = run.mlflow_run()
    log.ended(run, reference)
    with mlflow_server(folder, mlflow.port) as mlflow:
        run.start("local")
        run.finish()
        status = mlflow.status(first)
    return {"same_mlflow_run": first == run.mlflow_run(), "mlflow_status": status}


def measure(seed: int) -> dict[str, Any]:
    """All runs."""
    log = Log(random.Random(seed))
    with tempfile.TemporaryDirectory() as name, flaky_s3() as server:
        root = Path(name)
        toys.corpus(root / "corpus.parquet", SHARDS * Run.shard_rows)
        for m in range(TEACHERS):
            toys.classifier(root / f"teacher{m}", [f"topic{2 * m + i}" for i in range(3)], seed=m)
        say("undisturbed")
        alone = Run("undisturbed", root, str(root / "undisturbed"), pause=0.0)
        alone.start("local")
        alone.finish()
        reference = alone.parts()
        with Cluster(head={"CPU": 1}) as cluster:
            cluster.add(_NODE, _NODE)
            for number in range(2):
                one = Run(f"processes {number}", root, str(root / f"processes{number}"))
                processes_and_nodes(cluster, one, log, reference)
            resumed = drivers(
                cluster, Run("drivers", root, str(root / "drivers"), tracked=True), log, reference
            )
        bucket = Run.bucket(server.address)
        remote = Run("storage", root, f"s3://{bucket}/run", tracked=True, s3=server.address)
        served = storage_and_server(server, remote, log, reference, root)
    survived = {run["run"] for run in log.runs if run["survived"]}
    kinds = Counter(fault["kind"] for fault in log.faults)
    again = sum(run["shards_again"] for run in log.runs)
    return {
        "faults": {
            "injected": len(log.faults),
            "survived": sum(fault["run"] in survived for fault in log.faults),
            "kinds": dict(kinds),
        },
        "rows": {
            "lost": sum(run["lost"] for run in log.runs),
            "duplicated": sum(run["duplicated"] for run in log.runs),
            "scored_again": again * Run.shard_rows,
            "allowed_again": len(log.faults) * TEACHERS * Run.shard_rows,
        },
        "evidence_equal": all(run["equal"] for run in log.runs),
        "killed_at_half": resumed,
        "mlflow": served,
        "moments": log.faults,
        "runs": log.runs,
        "seed": seed,
        "command": f"python benchmarks/faults.py --seed {seed}",
        "processors": os.cpu_count(),
    }


def broken(found: dict[str, Any]) -> list[str]:
    """Promises that do not hold."""
    faults, rows, half = found["faults"], found["rows"], found["killed_at_half"]
    promises = {
        "every fault survived": faults["survived"] == faults["injected"],
        "at least 12 faults of 6 kinds": faults["injected"] >= 12 and len(faults["kinds"]) >= 6,
        "no row lost": rows["lost"] == 0,
        "no row twice": rows["duplicated"] == 0,
        "evidence as undisturbed": found["evidence_equal"],
        "at most a shard per fault and teacher again": rows["scored_again"] <= rows["allowed_again"],
        "killed at half: at most 1.05 of all rows": half["ratio"] <= 1.05,
        "one MLflow run": half["same_mlflow_run"] and found["mlflow"]["same_mlflow_run"],
        "the MLflow run finished": found["mlflow"]["mlflow_status"] == "FINISHED",
    }
    return [promise for promise, held in promises.items() if not held]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    began = time.monotonic()
    found = measure(options.seed)
    found["seconds"] = time.monotonic() - began
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    for kind, count in found["faults"]["kinds"].items():
        print(f"{kind:15} {count}")
    print(f"{found['faults']['survived']} of {found['faults']['injected']} faults survived")
    rows = found["rows"]
    print(f"rows lost {rows['lost']}, duplicated {rows['duplicated']}, scored again {rows['scored_again']}")
    print(f"killed at half: {found['killed_at_half']['ratio']:.3f} of all rows scored in all")
    failed = broken(found)
    if failed:
        sys.exit("broken: " + "; ".join(failed))


if __name__ == "__main__":
    main()
