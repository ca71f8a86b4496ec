"""Figures of an earlier run: kept where code, settings and rows are the same, a whole seed or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import quality
import quality_kept as kept
import quality_report as report
from quality_methods import describe

FACTS = {"about": "x", "scale": "tiny", "seeds": 2, "labels": 4, "corpus_rows": 10, "tests": {"test": 5}}
TEACHERS = [{"teachers": {"t1": {"own_accuracy": a}}, "oracle": a} for a in (0.8, 0.9)]
RUNS = {
    "upper_bound": [{"accuracy": 0.9}, {"accuracy": 0.8}],
    "default": [{"accuracy": 0.7}, {"accuracy": 0.6}],
    "paper": [{"accuracy": 0.5}, {"accuracy": 0.4}],
}


def written(path: Path, **changed: Any) -> str:
    """A file of one suite, as `quality.py` writes it."""
    content = {
        "suite": "trec",
        **report.of_suite(FACTS, TEACHERS, RUNS),
        "code": kept.code(),
        "settings": {name: describe(name) for name in RUNS},
    }
    path.write_text(json.dumps(content | changed))
    return str(path)


def test_a_seed_comes_back_as_it_was_measured(tmp_path: Path) -> None:
    found = kept.read(written(tmp_path / "f.json"), "tiny")
    said = found.seed("trec", FACTS | {"seeds": 3}, 1, ["upper_bound", "paper"])
    assert said == (TEACHERS[1], {"upper_bound": {"accuracy": 0.8}, "paper": {"accuracy": 0.4}})
    # measured again from these, it is the same
    again = [found.seed("trec", FACTS, seed, list(RUNS)) for seed in (0, 1)]
    runs = {name: [one[1][name] for one in again if one] for name in RUNS}
    whole = report.of_suite(FACTS, [one[0] for one in again if one], runs)
    assert json.loads(json.dumps(whole)).items() <= json.loads((tmp_path / "f.json").read_text()).items()


@pytest.mark.parametrize(
    ("suite", "changed", "seed", "methods"),
    [
        ("other", {}, 0, ["paper"]),
        ("trec", {"corpus_rows": 11}, 0, ["paper"]),
        ("trec", {}, 2, ["paper"]),
        ("trec", {}, 0, ["paper", "uhc"]),
    ],
)
def test_what_is_not_there_whole_is_measured(
    suite: str, changed: dict[str, Any], seed: int, methods: list[str], tmp_path: Path
) -> None:
    found = kept.read(written(tmp_path / "f.json"), "tiny")
    assert found.seed(suite, FACTS | changed, seed, methods) is None


@pytest.mark.parametrize(
    "changed", [{"code": "other"}, {"settings": {"default": {"samples": 7}}}, {"scale": "small"}]
)
def test_figures_of_other_code_settings_or_scale_are_not_kept(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    assert not kept.read(written(tmp_path / "f.json", **changed), "tiny").suites
    assert not kept.read(str(tmp_path / "none.json"), "tiny").suites
    assert not kept.read(None, "tiny").suites


def test_comments_and_docstrings_are_not_code() -> None:
    one = '"""Doc."""\ndef f():\n    """Doc."""\n    return 1  # one\n'
    assert kept.bare(one) == kept.bare("def f():\n    return   1\n")
    assert kept.bare(one) != kept.bare("def f():\n    return 2\n")
    assert kept.bare('def f():\n    """Only."""\n') == kept.bare("def f():\n    pass\n")


def test_the_command_names_what_was_measured() -> None:
    one = report.of_suite(
        FACTS | {"seeds": 1}, TEACHERS, {name: RUNS[name] for name in ("upper_bound", "default")}
    )
    assert quality.commands({"trec": one | {"ensemble": {"accuracy": 0.5}}}, "tiny") == [
        "python benchmarks/quality.py --suite trec --scale tiny --seeds 1 --methods upper_bound default"
    ]
