"""The model card: valid front matter, true words, and nothing that must not be published."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from muki_ray.config import TrainingConfig
from muki_ray.config_method import MukiMethod, PaperMethod, UhcMethod
from muki_ray.student.card import is_hub_id, model_card

LABELS = ["business", "positive|good", "sport"]
TEACHERS = [
    {"name": "news", "model": "acme/news-minilm", "revision": "0a1b2c", "labels": ["business", "sport"]},
    {"name": "mood", "model": "distilmood", "revision": None, "labels": ["positive|good", "sport"]},
]


def card(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "labels": LABELS,
        "teachers": TEACHERS,
        "base_model": "acme/base",
        "method": MukiMethod().model_dump(mode="json"),
        "training": TrainingConfig().model_dump(mode="json"),
        "corpus": {"rows": 1_234_567, "fingerprint": "00ff00ff00ff00ff"},
        "metrics": None,
    }
    return model_card(**(arguments | changes))


def front_matter(text: str) -> dict[str, Any]:
    start, block, _ = text.split("---\n", 2)
    assert start == ""
    parsed = yaml.safe_load(block)
    assert isinstance(parsed, dict)
    return parsed


def test_front_matter_without_metrics() -> None:
    assert front_matter(card()) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": ["acme/news-minilm", "distilmood"],
        "base_model_relation": "merge",
        "tags": ["muki-ray", "knowledge-integration", "mc-dropout"],
    }


@pytest.mark.parametrize(
    ("method", "tagged"),
    [
        (MukiMethod(cotraining=False), True),
        (MukiMethod(samples=0, score="entropy"), False),
        (MukiMethod(score="entropy"), True),
        (MukiMethod(score="entropy", cotraining=False), False),
        (PaperMethod(), True),
        (UhcMethod(), False),
    ],
)
def test_dropout_is_named_where_it_had_a_say(method: Any, tagged: bool) -> None:
    found = front_matter(card(method=method.model_dump(mode="json")))["tags"]
    assert ("mc-dropout" in found) == tagged


def test_front_matter_with_metrics_is_a_model_index_that_the_hub_reads_back() -> None:
    data = ModelCard(card(metrics={"accuracy": 0.9125, "macro_f1": 0.5, "rows": 1500})).data
    assert data.model_name == "student"
    assert [(r.metric_type, r.metric_value, r.task_type) for r in data.eval_results] == [
        ("accuracy", 0.9125, "text-classification"),
        ("f1", 0.5, "text-classification"),
    ]


@pytest.mark.parametrize("metrics", [{"accuracy": math.nan}, {"accuracy": None}, {"rows": 3}, {}])
def test_no_accuracy_no_model_index(metrics: dict[str, Any]) -> None:
    assert "model-index" not in front_matter(card(metrics=metrics))


def test_local_places_and_credentials_do_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    places = [str(tmp_path / "absolute"), "models/mine", "s3://key:secret@bucket/model", "~/model", "./model"]
    teachers = [
        {"name": f"teacher{m}", "model": place, "revision": "main", "labels": ["sport", "business"]}
        for m, place in enumerate(places)
    ]
    text = card(teachers=teachers, base_model="models/mine", method={"kind": "muki", "cache": str(tmp_path)})
    for secret in (*places, str(tmp_path), "secret", "bucket"):
        assert secret not in text
    assert "base_model" not in front_matter(text)
    assert "base_model_relation" not in front_matter(text)
    assert all(f"`teacher{m}`" in text for m in range(len(places)))
    assert "a local model" in text


def test_only_hub_teachers_are_base_models() -> None:
    teachers = [TEACHERS[0], TEACHERS[1] | {"model": "/models/mine"}]
    assert front_matter(card(teachers=teachers))["base_model"] == ["acme/news-minilm"]


def test_one_hub_model_used_twice_is_one_base_model() -> None:
    again = TEACHERS[0] | {"name": "again"}
    assert front_matter(card(teachers=[TEACHERS[0], again]))["base_model"] == ["acme/news-minilm"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("acme/model", True),
        ("bert-base-uncased", True),
        ("/acme/model", False),
        ("a/b/c", False),
        ("../model", False),
        ("s3://a/b", False),
        ("acme/", False),
        ("", False),
    ],
)
def test_is_hub_id(model: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(model) is expected


def test_text_tells_teachers_corpus_and_method() -> None:
    text = card()
    assert "over 3 labels, integrated from 2 teachers" in text
    assert (
        "- `news` ([acme/news-minilm](https://huggingface.co/acme/news-minilm), revision `0a1b2c`), "
        "2 labels: `business`, `sport`\n" in text
    )
    assert "- `mood` ([distilmood](https://huggingface.co/distilmood)), 2 labels: `positive|good`" in text
    assert "1,234,567 rows, fingerprint `00ff00ff00ff00ff`" in text
    assert "reads the row 4 times with dropout on" in text
    assert "average, weighted by the scores." in text
    assert "Of every target 0.1 is shared evenly by all teachers" in text
    assert "gap between the two best scores" in text
    assert "[acme/base](https://huggingface.co/acme/base)" in text
    assert "| `dropout.masks` | `per_sample` |" in text
    assert "| `learning_rate` | `5e-05` |" in text
    assert "No labelled test set was given" in text


def test_words_follow_the_method() -> None:
    assert "taught each other" in card()
    method = MukiMethod(samples=0, score="entropy", integration="hard", margin=False, cotraining=False)
    text = card(method=method.model_dump(mode="json"))
    assert "reads the row once, without dropout" in text
    assert "the teacher with the best score" in text
    assert "Every row counts the same." in text
    assert "softmax of the scores" not in text
    paper = card(method=PaperMethod().model_dump(mode="json"))
    assert "| `kind` | `paper` |" in paper
    assert "entropy of its mean prediction" in paper
    assert "softmax of the scores at temperature 0.2" in paper
    assert "shared evenly" not in paper
    assert "taught each other" not in paper
    assert "| `dropout.masks` | `per_element` |" in paper


def test_one_teacher_has_no_margin() -> None:
    text = card(teachers=TEACHERS[:1])
    assert "integrated from 1 teacher\n" in text
    assert "gap between" not in text
    assert "With one teacher there is nothing to weigh" in text


def test_results_table() -> None:
    nested = {"ensemble": {"accuracy": 0.7}, "note": "x", "bad": math.inf}
    text = card(metrics={"accuracy": 0.91256, "rows": 1500, **nested})
    assert "| `accuracy` | 0.9126 |" in text
    assert "| `rows` | 1,500 |" in text
    assert "| `ensemble.accuracy` | 0.7000 |" in text
    assert "`note`" not in text
    assert "`bad`" not in text


def test_hostile_labels_stay_inside_their_code_span() -> None:
    text = card(labels=["a\n---\n# Owned", "b`c", "<script>alert(1)</script>"], metrics={"f1": {"d|e": 0.5}})
    assert "`a --- # Owned`, `` b`c ``, `<script>alert(1)</script>`" in text
    assert "| `f1.d\\|e` | 0.5000 |" in text
    assert front_matter(text)["library_name"] == "transformers"


def test_file_ends_with_one_newline_and_has_every_section() -> None:
    text = card(metrics={"accuracy": 1.0})
    assert text.endswith("use.\n")
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["## Labels", "## How to use it", "## How it was made", "## Results", "## Limits"]
    assert "\n\n\n" not in text


def test_where_the_student_started_from() -> None:
    fresh, grown = ([line for line in card(grown=g).splitlines() if "student started" in line] for g in (False, True))  # fmt: skip
    assert len(fresh) == 1 and fresh[0].endswith("with a fresh head over the union.")
    assert len(grown) == 1 and "an earlier student, made in the same way from other teachers" in grown[0]
    assert "took over the rows of the labels" in grown[0] and "fresh head" not in grown[0]
