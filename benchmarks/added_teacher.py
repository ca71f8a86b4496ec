"""What one more teacher costs: a run with four, then the same command with a fifth, in the same run folder.

AG News texts; teachers of MPNet's size with random heads (only time is looked at), a MiniLM student. The second run
scores the new teacher alone, and its student starts from the first one's (`student.init: previous`), for one epoch where
the first took three. Seconds are those of the whole command, from the start of the process to its end.

    python benchmarks/added_teacher.py [--rows 1200] [--model mpnet] [--data DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import workload
import yaml

_COMMAND = Path(__file__).parents[1] / "jobs" / "integrate.py"
_FIRST = 4


def run(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The command: its seconds, and the rows that each teacher scored."""
    path = Path(config["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    began = time.perf_counter()
    done = subprocess.run([sys.executable, str(_COMMAND), str(path), *overrides], check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"error: the command ended with code {done.returncode}")
    metrics = json.loads(Path(config["output"], "report", "metrics.json").read_text())
    return {
        "teachers": len(config["teachers"]),
        "seconds": seconds,
        "rows_scored": metrics["rows"]["scored"],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both runs."""
    base = workload.encoder(None if options.model == "minilm" else options.model)
    teachers = [
        {"name": f"t{m}", "model": str(workload.classifier(base, [f"topic{m}", f"topic{m + 1}"], m))}
        for m in range(_FIRST + 1)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus.parquet"
        pd.DataFrame({"text": workload.texts(options.rows, options.data)}).to_parquet(corpus)
        config = {
            "teachers": teachers[:_FIRST],
            "corpus": {"path": str(corpus), "shard_rows": 256},
            "student": {"model": str(workload.encoder(None)), "max_length": workload.MAX_LENGTH},
            "output": f"{scratch}/run",
        }
        first = run(config, [])
        second = run({**config, "teachers": teachers}, ["student.init=previous", "training.epochs=1"])
    new = teachers[-1]["name"]
    return {
        "rows": options.rows,
        "model": options.model,
        "first": first,
        "second": second,
        "only_the_new_one_scored": second["rows_scored"]
        == {name: options.rows if name == new else 0 for name in second["rows_scored"]},
        "seconds_ratio": second["seconds"] / first["seconds"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    workload.add_arguments(parser)
    parser.set_defaults(model="mpnet")
    parser.add_argument("--rows", type=int, default=1200)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.model = 64, "minilm"
    text = json.dumps(measure(options), indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
