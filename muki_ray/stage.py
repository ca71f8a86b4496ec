"""What an actor of the graph does: teachers, one at a time, behind their evidence store.

Knows a teacher's task and what it is to be sent; knows nothing of the graph it stands in.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from muki_ray import errors
from muki_ray.errors import UserError
from muki_ray.runtime import Messenger, ray
from muki_ray.store import part_name
from muki_ray.tasks import ScoringTask
from muki_ray.teachers.evidence import EvidenceArrays, to_table

if TYPE_CHECKING:
    import pyarrow as pa

    from muki_ray.teachers.scoring import Scorer

# one shard at the model, one being read or written
SHARDS_AT_ONCE = 2


class TeacherStage:
    """Ray Data actor for one teacher, or for several that take turns; at any time one model is in memory.

    Begins to load the first teacher while Ray still starts the rest; a failure shows at the first shard. The model
    works on one thread of its own, so that the next shard is read and the last one written meanwhile.

    Args:
        tasks: of the teachers that it may be asked for.
        threads: Torch's.
    """

    def __init__(self, tasks: Sequence[ScoringTask], threads: int, messenger: Messenger) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.threads, self.messenger = threads, messenger
        self.engine = ThreadPoolExecutor(1, "muki-ray-engine")
        self.hands = ThreadPoolExecutor(SHARDS_AT_ONCE, "muki-ray-shards")
        self.turn: tuple[str, Future[Scorer]] | None = None
        if len(tasks) == 1:
            self._turn_to(tasks[0])

    def _turn_to(self, task: ScoringTask) -> Future[Scorer]:
        """The teacher's model; another one's is let go before this one is loaded."""
        if self.turn is None or self.turn[0] != task.name:
            self.turn = None
            self.turn = task.name, self.engine.submit(load_scorer, task, self.threads)
        return self.turn[1]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score the shards of one row (teacher, corpus, shards as JSON); a row for each, with its rows or its error."""
        task, corpus = self.tasks[str(batch["teacher"][0])], int(batch["corpus"][0])
        shards = json.loads(batch["shards"][0])
        scorer = self._turn_to(task)
        done = list(self.hands.map(lambda shard: self._outcome(task, scorer, corpus, shard), shards))
        return {
            "teacher": np.array([task.name] * len(shards), dtype=object),
            "corpus": np.full(len(shards), corpus, dtype=np.int64),
            "shard": np.array(shards, dtype=np.int64),
            "scored": np.array([scored for scored, _ in done], dtype=np.int64),
            "error": np.array([error for _, error in done], dtype=object),
        }

    def _outcome(self, task: ScoringTask, scorer: Future[Scorer], corpus: int, shard: int) -> tuple[int, str]:
        """Rows scored: all of the shard's, or 0 when its evidence was there; and what went wrong."""
        try:
            folder = task.folders[corpus]
            if folder.has(part_name(shard)):
                return 0, ""
            table = task.corpora[corpus].read(shard)
            evidence = self.engine.submit(self._evidence, task, scorer, table, shard).result()
            folder.write_table(part_name(shard), to_table(table["row_id"].to_numpy(), evidence))
            return len(table), ""
        except UserError as known:
            return 0, encoded(known)

    def _evidence(
        self, task: ScoringTask, scorer: Future[Scorer], table: pa.Table, shard: int
    ) -> EvidenceArrays:
        return scorer.result().score(
            table["text"].to_pylist(),
            table["text_pair"].to_pylist() if "text_pair" in table.column_names else None,
            shard=shard,
            progress=lambda rows: self.messenger.send("scored", (task.name, rows)),
        )


def load_scorer(task: ScoringTask, threads: int) -> Scorer:
    """A teacher's model, on the device that this actor has; the one before it is gone by then."""
    import torch  # not at the top: the integration's processes load this module, and need no Torch

    from muki_ray.teachers.loading import load
    from muki_ray.teachers.scoring import Scorer

    _collect()
    torch.set_num_threads(threads)  # Torch keeps it per thread
    wanted = task.spec.device
    cuda = wanted == "cuda" or (wanted == "auto" and bool(ray.get_gpu_ids()) and torch.cuda.is_available())
    if cuda:
        torch.cuda.empty_cache()
    return Scorer(
        load(task.spec, "cuda" if cuda else "cpu"),
        samples=task.samples,
        dropout=task.dropout,
        seed_key=task.spec.fingerprint,
    )


# times that this process has let go of a model
_collected = 0


def _collect() -> None:
    """Let go of the model before this one: models are full of cycles.

    What was imported would be looked through each time, which takes longer than loading a small teacher. So all that
    there is before the first model, and after it (the first one brings more imports), is set aside for good.
    """
    global _collected
    gc.collect()
    if _collected < 2:
        gc.freeze()
    _collected += 1


def encoded(error: UserError) -> str:
    """An error that the user can mend, as a row: Ray would retry an exception, and lose its type on the way."""
    return json.dumps([type(error).__name__, str(error)])


def decoded(text: str) -> UserError:
    """What `encoded` wrote, to be raised."""
    kind, message = json.loads(text)
    made: UserError = getattr(errors, kind)(message)
    return made
