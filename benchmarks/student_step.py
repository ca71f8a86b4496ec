"""The student's training step: the released procedure against ours, on the same rows, in turns.

The reference pads 16 rows to 128 tokens and runs both teachers inside every step, then the student, AdamW
(`reference.py`). Ours is the package's own training loop, as a run starts it: supervision from Parquet, batches of
like length, tokenized ahead on a thread, no teacher in memory. One process: after every few steps of ours, not
counted, come a few steps of the reference, so that both see the same machine. What is counted of ours is the whole
of a second epoch from step to step; held-out rows and checkpoints are counted for neither. Our reading thread works on
during the reference's turns, so the time to read and tokenize the whole epoch is measured apart and added to ours.

    python benchmarks/student_step.py [--quick] [--device cuda] [--model mpnet] [--json FILE]

`efficiency` is the share of the machine's matrix limit (bfloat16, measured in the same run) that the student's own
forward and backward use, real tokens only, without the last layer's tokens that no head reads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import reference
import torch
import workload
from machine import device_of, forward_flops, limits, synchronize, use_threads
from transformers import AutoConfig, AutoTokenizer

from muki_ray.config import StudentConfig, TrainingConfig
from muki_ray.store import Folder, part_name
from muki_ray.student.data import Supervision, plan_split
from muki_ray.student.loop import TrainingJob, run
from muki_ray.student.model import inspect_student
from muki_ray.student.solo import Solo

LABELS = ["World", "Sports", "Business", "Sci/Tech"]
TEACHERS = [LABELS[:2], LABELS[2:]]
BATCH = 16  # the release's, for both
_TURNS = 10  # of the reference


@dataclass
class Turns(Solo):
    """The world of our loop: reads the clock between steps, and gives the reference its turns.

    Attributes:
        reference_turn: runs a few reference steps and returns their seconds.
        first: steps before this one are warm-up.
        every: our steps between two turns.
        ours, theirs: seconds of each block of our steps, and of each turn.
    """

    reference_turn: Any = None
    first: int = 0
    every: int = 1
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    began: float = 0.0

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Called by the loop after every step."""
        if done < self.first:
            return
        counted = done - self.first
        if counted == 0:
            synchronize(self.device)
            self.began = time.perf_counter()
        elif counted % self.every == 0 or done == total:
            synchronize(self.device)
            self.ours.append(time.perf_counter() - self.began)
            if counted % self.every == 0:
                self.theirs.append(self.reference_turn())
            self.began = time.perf_counter()


def supervision(texts: Sequence[str], folder: Path, seed: int) -> tuple[Supervision, np.ndarray]:
    """Soft targets and margins as two fine-tuned teachers give them, drawn from `seed`; scores `[N, 2]` for the reference."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.2, 1.0, (len(texts), 2)).astype(np.float32)
    targets = rng.dirichlet(np.full(len(LABELS), 0.2), len(texts)).astype(np.float32)
    table = pa.table(
        {
            "row_id": np.arange(len(texts)),
            "text": list(texts),
            "target": list(targets),
            "weight": np.abs(scores[:, 0] - scores[:, 1]) + np.float32(1e-6),
        }
    )
    target = Folder(str(folder))
    target.write_table(part_name(0), table)
    split = plan_split(target, [len(texts)], 1e-6, seed)
    return Supervision(target, (len(texts),), split, float(table["weight"].to_numpy().mean())), scores


def reference_turns(
    base: Path, texts: Sequence[str], scores: np.ndarray, device: torch.device, total: int, steps: int
) -> Any:
    """A function that takes the reference's next `steps` steps and returns their seconds; the first are warm-up."""
    teachers = []
    for seed, labels in enumerate(TEACHERS):
        model, tokenizer = reference.load(workload.classifier(base, labels, seed), device)
        teachers.append((model, [LABELS.index(label) for label in labels]))
    student, _ = reference.load(workload.classifier(base, LABELS, len(TEACHERS)), device)
    trainer = reference.StudentTrainer(student, teachers, len(LABELS), total)
    inputs, scores_NM = reference.tokenized(tokenizer, texts), torch.from_numpy(scores)
    position = 0

    def turn() -> float:
        nonlocal position
        synchronize(device)
        began = time.perf_counter()
        for _ in range(steps):
            take = torch.arange(position, position + BATCH) % len(texts)
            trainer.step({name: values[take] for name, values in inputs.items()}, scores_NM[take])
            position += BATCH
        synchronize(device)
        return time.perf_counter() - began

    turn()
    return turn


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both, in turns."""
    device = device_of(options.device)
    use_threads(options.threads)
    rows, steps = (640, 2) if options.quick else (options.rows, options.reference_steps)
    if device.type == "cuda":
        rows, steps = max(rows, 8192), max(steps, 20)
    base = workload.encoder(options.model)
    texts = workload.texts(rows + 1, options.data, options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        data, scores = supervision(texts, Path(scratch) / "supervision", options.seed)
        training = TrainingConfig(epochs=2, batch_size=BATCH, patience=None, seed=options.seed)
        job = TrainingJob(
            inspect_student(StudentConfig(model=str(base)), workload.MAX_LENGTH),
            tuple(LABELS),
            training,
            data,
            torch.get_num_threads(),
        )
        epoch = data.steps(BATCH)
        turn = reference_turns(base, texts, scores, device, epoch * 2, steps)
        world = Turns(
            Path(scratch) / "best",
            device=device,
            reference_turn=turn,
            first=epoch + 1,
            every=max(1, epoch // _TURNS),
        )
        run(job, world)
        reading = reading_seconds(job)
    # the first step of the timed epoch starts the clock
    seconds, counted = sum(world.ours) + reading, data.split.train_rows - BATCH
    rate, reference_rate = counted / seconds, BATCH * steps / statistics.median(world.theirs)
    machine = limits(device)
    config = student_config(base)
    lengths = workload.token_lengths(base, texts)
    flops = 3 * forward_flops(config, lengths, read_tokens=1) / len(lengths)
    return {
        "student": {
            "ratio": rate / reference_rate,
            "rows_per_s": rate,
            "reference_rows_per_s": reference_rate,
            "efficiency": rate * flops / machine["bfloat16_flops"],
            "rows": counted,
            "reading_s": reading,
            "reference_rows": BATCH * steps * len(world.theirs),
            "batch_size": BATCH,
            "tokens_per_row": sum(lengths) / len(lengths),
            "model": base.name,
        },
        "machine": machine,
    }


def reading_seconds(job: TrainingJob) -> float:
    """Of one epoch: from Parquet to padded batches."""
    tokenizer = AutoTokenizer.from_pretrained(job.student.location)

    def encode(texts: list[str], _: Any) -> Any:
        return dict(tokenizer(texts, truncation=True, max_length=job.student.max_length))

    began = time.perf_counter()
    for batch in job.supervision.train(1, BATCH, job.training.seed, encode):
        tokenizer.pad(batch.encoded, return_tensors="pt")
    return time.perf_counter() - began


def student_config(base: Path) -> Any:
    """The student's configuration."""
    return AutoConfig.from_pretrained(base, num_labels=len(LABELS))


def table(figures: dict[str, Any]) -> str:
    """For people."""
    student, machine = figures["student"], figures["machine"]
    return "\n".join(
        [
            f"{student['model']} on AG News text ({student['tokens_per_row']:.0f} tokens a row), batch {BATCH}, {machine['device']}",
            f"{'procedure':<44}{'rows':>7}{'rows/s':>10}",
            f"{'reference: padded, teachers in the step':<44}{student['reference_rows']:>7}{student['reference_rows_per_s']:>10.2f}",
            f"{'ours':<44}{student['rows']:>7}{student['rows_per_s']:>10.2f}",
            f"ratio {student['ratio']:.1f}, {student['efficiency']:.2f} of the bfloat16 matrix limit "
            f"({machine['bfloat16_flops'] / 1e9:,.0f} GFLOP/s)",
        ]
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    workload.add_arguments(parser)
    parser.add_argument("--rows", type=int, default=3200, help="rows of an epoch of ours")
    parser.add_argument("--reference-steps", type=int, default=5, help=f"of each of the {_TURNS} turns")
    parser.add_argument("--threads", type=int, help="default: all CPUs of this process")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    workload.quiet()
    if not torch.cuda.is_available():
        print("no GPU here: measured on the CPU; on a machine with one give --device cuda")
    figures = measure(options)
    print(table(figures))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
