"""The report on disk: one page that needs nothing else, and that no text can break."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muki_ray.report import CorpusStatistics, Example, write_report
from muki_ray.report.page import excerpt
from muki_ray.report.plots import margin_histogram
from muki_ray.statistics import BINS
from muki_ray.store import Folder

HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not match."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def png() -> bytes:
    return margin_histogram(np.ones(BINS, dtype=np.int64))


def statistics() -> CorpusStatistics:
    result = CorpusStatistics.empty(2)
    result.update(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.5]]), np.array([0.8, 0.6, 0.1]))
    return result


METRICS: dict[str, Any] = {
    "student": {"accuracy": 0.9512, "macro_f1": 0.94, "ece": 0.03},
    "teachers": {"news": {"accuracy": 0.4, "macro_f1": None, "ece": 0.2, "own_accuracy": 0.9871}},
    "selection": {"accuracy": 0.9727, "auroc": 0.9946, "rows": 1234},
    "rows_tested": 1500,
    "rows_outside_union": 7,
}


def written(folder: Path, png: bytes, **changes: Any) -> Page:
    arguments: dict[str, Any] = {
        "metrics": METRICS,
        "statistics": statistics(),
        "pictures": {"margins": png},
        "title": f"Run {HOSTILE}",
        "labels": ["business", HOSTILE],
        "teachers": ["news", HOSTILE],
        "top_confusions": [{"gold": HOSTILE, "predicted": "business", "rows": 3, "share": 0.25}],
        "examples": [Example(f"{HOSTILE} & more", HOSTILE, 0.75, gold=HOSTILE, teacher="news")],
        "settings": {
            "output": "s3://key:secret@bucket/run?token=t",
            "note": HOSTILE,
            "n": [{"a": "s3://k:s@b"}],
        },
        **changes,
    }
    write_report(Folder(str(folder)), **arguments)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_files_are_those_promised(tmp_path: Path, png: bytes) -> None:
    written(tmp_path, png)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.json", "statistics.json", "margins.png", "report.html"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == METRICS
    assert CorpusStatistics.from_json(json.loads((tmp_path / "statistics.json").read_text())) == statistics()
    assert (tmp_path / "margins.png").read_bytes() == png


def test_the_page_says_what_was_measured(tmp_path: Path, png: bytes) -> None:
    text = written(tmp_path, png).text
    for expected in (
        "2 labels · 3 unlabeled rows · 1,500 test rows",
        "teacher news 0.4000 - 0.2000 0.9871",
        "student 0.9512 0.9400 0.0300 -",
        "on 0.9727 of 1,234 rows (AUROC 0.9946)",
        "7 test rows have a gold label that no teacher knows",
        "news 66.67 0.5667",
        "Mean margin between the two best scores: 0.5000",
        "business 3 25.0",
    ):
        assert expected in text


def test_rows_set_aside_are_on_the_page(tmp_path: Path, png: bytes) -> None:
    notes = ["corpus: 3 of 5 rows set aside (empty text: 3), see /run/q.parquet", f"test set: {HOSTILE}"]
    for changes in ({}, {"statistics": None}):
        page = written(tmp_path, png, set_aside=notes, **changes)
        assert all(note in page.text for note in notes)
        assert "script" not in page.tags
    assert "set aside" not in written(tmp_path, png).text


def test_text_of_others_is_text(tmp_path: Path, png: bytes) -> None:
    page = written(tmp_path, png)
    assert "script" not in page.tags
    # title twice, teacher, label, confusion, example text, prediction, gold, settings
    assert page.text.count(HOSTILE) == 9


def test_the_page_needs_nothing_else(tmp_path: Path, png: bytes) -> None:
    page = written(tmp_path, png)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources] == [png]
    assert "link" not in page.tags
    html = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(", html)


def test_credentials_in_settings_are_not_shown(tmp_path: Path, png: bytes) -> None:
    text = written(tmp_path, png).text
    assert "output: s3://bucket/run" in text
    assert "a: s3://b" in text
    assert "secret" not in text
    assert "token" not in text


def test_a_run_without_test_set_corpus_or_pictures(tmp_path: Path, png: bytes) -> None:
    page = written(
        tmp_path, png, metrics={}, statistics=None, pictures={}, top_confusions=(), examples=(), settings=None
    )
    assert "nothing was evaluated" in page.text
    assert "img" not in page.tags
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "report.html"}


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path, png: bytes) -> None:
    for changes in (
        {"pictures": {"../up": png}},
        {"pictures": {"margins": b"no picture"}},
        {"teachers": ["news"]},
        {"metrics": {**METRICS, "kl": float("nan")}},
    ):
        with pytest.raises(ValueError, match=r"picture|names of teachers|JSON"):
            written(tmp_path, png, **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_excerpt_is_short_and_harmless() -> None:
    assert excerpt("plain\ntext") == "plain\ntext"
    assert excerpt("a\x00b\u202ec\ud800") == "abc"
    assert excerpt("a\u200cb") == "a\u200cb"  # a joiner is part of a word in some scripts
    assert excerpt("word " * 500, most=9) == "word word …"


def test_text_that_is_no_unicode_does_not_stop_the_report(tmp_path: Path, png: bytes) -> None:
    page = written(tmp_path, png, labels=["a", "lone \ud800"])
    assert "lone ?" in page.text
