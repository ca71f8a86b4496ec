"""How good the student is: every method on every suite, against the student trained with gold labels.

    python benchmarks/quality.py --suite NAME [NAME ...|all] [--scale tiny|small|full] [--seeds N]
                                 [--methods NAME ...] [--no-students] [--scores] [--json FILE] [--plots DIR]
                                 [--jobs N] [--data DIR] [--cache DIR]

Suites are the files in `suites/`; methods: see `quality_methods.py`. `--seeds 3` measures seeds 0, 1 and 2: a seed is
that of the teachers' training, of the dropout and of the student; rows are the same for all. `--no-students` looks at
scores and targets alone, in seconds once the evidence is there. `--scores` compares all scores and standardisations.

`--jobs N` trains so many students at once, each on its share of the processors; by default, at `tiny`, one per
processor: a model of that size is no faster on two.

Teachers, evidence and students are kept in `--cache`, so a run that was stopped goes on where it was. Suites and seeds that
FILE already holds are not measured again if code, settings and rows are the same, and its other suites stay: a table can
be made in pieces, on machines that share nothing but that file. Data is `--data`, by default `$MUKI_DATA`. A suite whose
pretrained models are not installed is skipped, with the packages it needs.

JSON of one suite: `upper_bound.accuracy`, `methods.<name>.accuracy`, `methods.<name>.selection_accuracy`; of several:
the same below `suites.<suite>`, and `summary`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import quality_report as report
import torch
from quality_cache import digest
from quality_case import CORPUS, Case, case
from quality_choice import of_scores, of_teachers
from quality_data import material
from quality_kept import Kept, code, read
from quality_methods import BIASED_ENSEMBLE, DIRECT, NAMES, UPPER_BOUND, chooses, describe, method_of
from quality_models import UnavailableError
from quality_plots import draw
from quality_run import figures
from quality_suites import SCALES, TRAIN_ROWS, Suite, load, names

from muki_ray.errors import UserError

CACHE = "~/.cache/muki_ray/benchmarks/quality"


def measure(name: str, suite: Suite, options: argparse.Namespace, kept: Kept) -> dict[str, Any]:
    """All methods and seeds on one suite; see `report.of_suite`. What is kept of them is not measured again.

    Raises:
        UnavailableError: a pretrained model's packages are not installed.
        UserError: the data is not there, or not as the suite says.
    """
    settings = suite.at(options.scale)
    rows = material(suite, options.scale, Path(options.data), TRAIN_ROWS[options.scale])
    facts = {
        "about": suite.about,
        "scale": options.scale,
        "seeds": options.seeds,
        "labels": len(rows.union),
        "models": {"teachers": settings.teacher_models, "student": settings.student_model},
        "corpus_rows": len(rows.corpus),
        "tests": {test: len(frame) for test, frame in rows.tests.items()},
        "made_with": digest([settings.model_dump_json(), str(options.students), *rows.all_texts()]),
    }
    say(f"{name}: {len(rows.corpus)} corpus rows, {len(rows.union)} labels, {len(rows.labels)} teachers")
    runs: dict[str, list[dict[str, Any]]] = {}
    teachers, scores = [], []
    for seed in range(options.seeds):
        before = None if options.scores else kept.seed(name, facts, seed, options.methods)
        if before is not None:
            say(f"{name} seed {seed}: kept")
            teachers.append(before[0])
            for method, found in before[1].items():
                runs.setdefault(method, []).append(found)
            continue
        one = case(name, seed, rows, settings, Path(options.cache), say)
        teachers.append(of_teachers(one))
        for method, found in each(one, options):
            runs.setdefault(method, []).append(found)
        if options.scores:
            scores.append(of_scores(one, dropouts(seed)))
    found = report.of_suite(facts, teachers, runs)
    return found | ({"scores": report.merged(scores)} if scores else {})


def each(one: Case, options: argparse.Namespace) -> Iterable[tuple[str, dict[str, Any]]]:
    """Every method's figures, several at once if so asked."""
    if options.jobs == 1:
        return [(method, timed(one, method, options.students)) for method in options.methods]
    for method in options.methods:  # first, and here: methods share evidence
        settings = method_of("default" if method == BIASED_ENSEMBLE else method, one.seed)
        if settings is not None:
            for where in (CORPUS, *list(one.material.tests)[:1]) if chooses(method) else (CORPUS,):
                one.evidence(settings, where)
    lean = replace(one, _said={})
    found = pool(options.jobs).map(timed, repeat(lean), options.methods, repeat(options.students))
    return zip(options.methods, found, strict=True)


@cache
def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that share the processors evenly."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(threads,))


def timed(one: Case, method: str, students: bool) -> dict[str, Any]:
    """One method's figures, and a line about them."""
    began = time.monotonic()
    found = figures(one, method, students)
    said = [
        f"{key} {found[key]:.4f}"
        for key in ("accuracy", "selection_accuracy", "target_accuracy")
        if key in found and found[key] is not None
    ]
    say(f"{one.name} seed {one.seed} {method}: {', '.join(said) or '-'} ({time.monotonic() - began:.0f}s)")
    return found


def dropouts(seed: int) -> dict[str, Any]:
    """The two ways to draw Monte-Carlo samples that are compared."""
    return {name: method_of(name, seed) for name in ("default", "paper")}


def arguments() -> argparse.Namespace:
    """What was asked for, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite", nargs="+", required=True, metavar="NAME", help=f"all, or of {', '.join(names())}"
    )
    parser.add_argument("--scale", choices=SCALES, default="tiny")
    parser.add_argument("--seeds", type=int, default=3, help="how many; default 3")
    parser.add_argument(
        "--methods", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument(
        "--no-students", dest="students", action="store_false", help="scores and targets alone"
    )
    parser.add_argument("--scores", action="store_true", help="also compare all scores and standardisations")
    parser.add_argument(
        "--jobs",
        type=int,
        help="students trained at once; default 1, at tiny as many as there are processors",
    )
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--plots", help="write pictures to this folder")
    parser.add_argument("--data", default=os.environ.get("MUKI_DATA"), help="default $MUKI_DATA")
    parser.add_argument("--cache", default=CACHE)
    options = parser.parse_args()
    options.suite = names() if options.suite == ["all"] else list(dict.fromkeys(options.suite))
    options.cache = str(Path(options.cache).expanduser())
    if options.jobs is None:
        options.jobs = (
            (os.cpu_count() or 1) if options.scale == "tiny" and not torch.cuda.is_available() else 1
        )
    if options.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {options.jobs}")
    if options.seeds < 1:
        parser.error(f"--seeds must be 1 or more, got {options.seeds}")
    if not options.data or not Path(options.data).is_dir():
        parser.error(f"no data folder at {options.data!r}; give --data or set MUKI_DATA")
    if not options.students:
        options.methods = [one for one in options.methods if chooses(one) or one in ("vanilla_kd", *DIRECT)]
        options.scores = True
    return options


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    code()  # of now: the files may change while this runs
    done: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    try:
        suites = {name: load(name) for name in options.suite}
        kept = read(options.json, options.scale)
        done |= kept.suites
        for name, suite in suites.items():
            try:
                done[name] = measure(name, suite, options, kept)
            except UnavailableError as reason:
                skipped[name] = str(reason)
                say(f"{name}: skipped: {reason}")
                continue
            print(report.suite_table(name, done[name]), flush=True)
            if "scores" in done[name]:
                print(report.score_table(name, done[name]["scores"]), flush=True)
            write(options, done, skipped)
    except UserError as error:
        sys.exit(f"error: {error}")
    finally:
        if pool.cache_info().currsize:
            pool(options.jobs).shutdown()
    if not done:
        sys.exit(f"error: every suite was skipped; {next(iter(skipped.values()))}")
    if len(done) > 1:
        print(report.summary_table(report.summary(done)))
    if options.plots:
        for path in draw(done, Path(options.plots)):
            say(f"wrote {path}")


def write(options: argparse.Namespace, done: dict[str, Any], skipped: dict[str, str]) -> None:
    """The JSON of what is there so far. Two runs at once must not share a file."""
    if not options.json:
        return
    methods = [name for name in NAMES if any(has(one, name) for one in done.values())]
    common: dict[str, Any] = {
        "command": "\n".join(commands(done, options.scale)),
        "code": code(),
        "settings": {name: describe(name) for name in methods},
        "skipped": skipped,
    }
    if len(done) == 1:
        (content,) = ({"suite": name, **found, **common} for name, found in done.items())
    else:
        content = {"suites": done, "summary": report.summary(done), **common}
    target = Path(options.json)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = target.with_name(f".{target.name}.tmp")
    whole.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    whole.replace(target)


def has(suite: dict[str, Any], method: str) -> bool:
    """Whether the suite's figures hold the method."""
    return method in suite["methods"] or (method == UPPER_BOUND and method in suite)


def commands(done: dict[str, Any], scale: str) -> list[str]:
    """What makes these figures: a command for all suites of as many seeds and the same methods."""
    asked: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for name, one in done.items():
        methods = tuple(method for method in NAMES if has(one, method))
        asked.setdefault((one["seeds"], methods), []).append(name)
    found = []
    for (seeds, methods), suites in asked.items():
        command = [
            "python benchmarks/quality.py --suite",
            *(["all"] if sorted(suites) == names() else suites),
        ]
        command += ["--scale", scale, "--seeds", str(seeds)]
        command += [] if list(methods) == NAMES else ["--methods", *methods]
        found.append(" ".join(command))
    return found


def say(line: str) -> None:
    """A line of progress, beside the tables."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
