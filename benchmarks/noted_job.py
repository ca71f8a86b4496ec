"""`muki-ray`, with notes of what each teacher scores and where, for tests and benchmarks that disturb it.

    python benchmarks/noted_job.py NOTES PAUSE integrate CONFIG [dotted.key=value ...]

Each shard that a teacher's model begins is a line `shard rows` in `NOTES/<teacher>@<node id>`: what is begun twice is
there twice. PAUSE: seconds that each shard takes longer: toys are done with one before a disturbance finds its moment.
All else is the job as it is.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from muki_ray import pipeline
from muki_ray.cli import main
from muki_ray.runtime import ray


class Begun(NamedTuple):
    """A shard that a teacher's model began."""

    teacher: str
    node: str
    shard: int
    rows: int


def take_notes(folder: Path, pause: float) -> None:
    """Have this process's jobs write notes. A class made here, so that Ray sends it to the actors by value."""

    class Noted(pipeline.TeacherStage):
        """Writes a line when the model begins a shard."""

        def _evidence(self, task: Any, *rest: Any) -> Any:
            *_, table, shard = rest
            path = folder / f"{task.name}@{ray.get_runtime_context().get_node_id()}"
            note = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(note, f"{shard} {len(table)}\n".encode())
            os.close(note)
            time.sleep(pause)
            return super()._evidence(task, *rest)

    folder.mkdir(parents=True, exist_ok=True)
    pipeline.TeacherStage = Noted  # type: ignore[misc]


def begun(folder: Path) -> list[Begun]:
    """All notes so far."""
    found = []
    for path in sorted(folder.glob("*@*")):
        teacher, _, node = path.name.partition("@")
        for line in path.read_text().splitlines():
            shard, rows = line.split()
            found.append(Begun(teacher, node, int(shard), int(rows)))
    return found


if __name__ == "__main__":
    take_notes(Path(sys.argv[1]).absolute(), float(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
