"""Pictures: drawn for few and for many, and showing what they were given."""

from __future__ import annotations

import io
import struct
import threading
import warnings

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from muki_ray.report import draw, plots, style
from muki_ray.statistics import BINS, CorpusStatistics

BLUE = (0x00, 0x72, 0xB2)


def size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def image(png: bytes) -> NDArray[np.int64]:
    """Colours of the pixels, 0..255, `[height, width, 3]`."""
    return np.round(matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).astype(np.int64)


def pixels(png: bytes, colour: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((image(png) == colour).all(axis=-1).sum())


def counts(teachers: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 50, (teachers, BINS))


def names(teachers: int) -> list[str]:
    return [f"teacher-{m}" for m in range(teachers)]


@pytest.mark.parametrize("teachers", [1, 2, 12, 70])
def test_distributions_are_drawn_for_few_and_many_teachers(teachers: int) -> None:
    width, height = size(plots.score_distributions(names(teachers), counts(teachers)))
    assert 500 < width < 2000
    assert 250 < height < 2200
    both = plots.owner_score_distributions(names(teachers), counts(teachers), counts(teachers))
    assert size(both)[0] < 2000


def test_names_of_teachers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 teachers, but counts of 2"):
        plots.score_distributions(names(3), counts(2))
    with pytest.raises(ValueError, match="1 teachers, but counts of 2"):
        plots.rows_won(names(1), np.array([1, 2]))


def test_a_teacher_without_rows_is_drawn() -> None:
    none = np.zeros((2, BINS), dtype=np.int64)
    assert size(plots.owner_score_distributions(names(2), counts(2), none))[0] > 500
    assert size(plots.rows_won(names(2), np.zeros(2, dtype=np.int64)))[0] > 500


def test_the_margin_histogram_fills_as_many_bins_as_are_equal() -> None:
    one, half = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    one[10] = 7
    half[: BINS // 2] = 7
    ratio = pixels(plots.margin_histogram(half), BLUE) / pixels(plots.margin_histogram(one), BLUE)
    assert ratio == pytest.approx(BINS / 2, rel=0.15)


def test_bars_of_rows_won_are_as_long_as_the_shares() -> None:
    # bars are drawn relative to the longest: full and a third of it
    ratio = pixels(plots.rows_won(names(2), np.array([75, 25])), BLUE) / pixels(
        plots.rows_won(names(2), np.array([50, 50])), BLUE
    )
    assert ratio == pytest.approx((1 + 1 / 3) / 2, rel=0.03)


def test_the_height_grows_with_the_teachers_up_to_a_bound() -> None:
    heights = [size(plots.rows_won(names(m), np.arange(1, m + 1)))[1] for m in (2, 40, 60, 70)]
    assert heights[0] < heights[1] < heights[2]
    assert heights[3] == pytest.approx(heights[2], rel=0.05)


@pytest.mark.parametrize("labels", [2, 5, 30, 150])
def test_confusion_matrices_from_few_to_many_labels(labels: int) -> None:
    matrix_CC = np.eye(labels, dtype=np.int64) * 20
    width, height = size(plots.confusion_picture(matrix_CC, [f"label {c}" for c in range(labels)]))
    assert 400 < width < 1400
    assert 350 < height < 1400


def test_one_mistake_among_many_labels_can_be_seen() -> None:
    labels = [f"label {c}" for c in range(100)]
    matrix_CC = np.eye(100, dtype=np.int64) * 20
    clean = image(plots.confusion_picture(matrix_CC, labels))
    matrix_CC[3, 60] = 1
    mistaken = image(plots.confusion_picture(matrix_CC, labels))
    assert mistaken.shape == clean.shape
    changed = mistaken[(mistaken != clean).any(axis=-1)]
    assert len(changed) > 25
    assert changed.mean() < 235  # clearly not white


def test_an_empty_confusion_matrix_is_drawn_and_a_wrong_one_refused() -> None:
    assert size(plots.confusion_picture(np.zeros((2, 2), dtype=np.int64), ["a", "b"]))[0] > 300
    with pytest.raises(ValueError, match="does not fit"):
        plots.confusion_picture(np.zeros((2, 3), dtype=np.int64), ["a", "b"])


def test_labels_are_text_not_formulas_and_any_script_is_drawn() -> None:
    labels = ["$\\frac$", "$x_{$ and $", "日本語", "line\nbreak\x00", "a" * 300]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        width, _ = size(plots.confusion_picture(np.eye(5, dtype=np.int64), labels))
    assert width < 1400


def test_accuracy_bars_are_drawn_for_few_and_many() -> None:
    one = {"accuracy": 0.5, "macro_f1": 0.5, "ece": 0.1}
    for teachers in (1, 70):
        metrics = {
            "student": one,
            "ensemble": one,
            "teachers": {name: {**one, "own_accuracy": 0.9} for name in names(teachers)},
            "upper_bound": one,
        }
        width, height = size(plots.accuracy_bars(metrics))
        assert 600 < width < 1300
        assert height < 2600
    with pytest.raises(ValueError, match="no accuracy"):
        plots.accuracy_bars({})


def test_the_students_bar_is_as_long_as_its_accuracy() -> None:
    def bar(accuracy: float) -> int:
        # the sample in the legend has the same colour, and is the same in both
        return pixels(plots.accuracy_bars({"student": {"accuracy": accuracy}}), BLUE)

    assert (bar(1.0) - bar(0.5)) == pytest.approx(bar(0.75) - bar(0.25), rel=0.03)
    assert bar(1.0) > 1.8 * bar(0.5)


def test_equal_input_gives_equal_bytes_in_any_thread() -> None:
    expected = plots.rows_won(names(3), np.array([3, 2, 1]))
    results: list[bytes] = []

    def work() -> None:
        results.append(plots.rows_won(names(3), np.array([3, 2, 1])))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected, expected]


def test_short_keeps_both_ends() -> None:
    assert style.short("plain") == "plain"
    assert style.short("two\n lines\x00!") == "two lines !"
    shortened = style.short("the-first-of-many-teachers-number-17", 20)
    assert len(shortened) == 20
    assert shortened.startswith("the-first")
    assert shortened.endswith("number-17")


def test_draw_makes_what_the_inputs_allow() -> None:
    statistics = CorpusStatistics.empty(2)
    assert draw(names(2), ["a", "b"], statistics=statistics) == {}
    scores_NM = np.array([[0.9, 0.1], [0.2, 0.8]])
    statistics.update(scores_NM, np.array([0.8, 0.6]))
    pictures = draw(
        names(2),
        ["a", "b"],
        metrics={"student": {"accuracy": 1.0}},
        statistics=statistics,
        scores_NM=scores_NM,
        owner_N=np.array([0, -1]),
        confusion_CC=np.eye(2, dtype=np.int64),
    )
    assert list(pictures) == ["accuracy", "rows_won", "scores", "margins", "scores_by_owner", "confusion"]
    unknown = draw(names(2), ["a", "b"], scores_NM=scores_NM, owner_N=np.array([-1, -1]))
    assert unknown == {}
