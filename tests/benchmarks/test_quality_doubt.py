import numpy as np
import pytest
from quality_doubt import of_doubt


def sure(top: list[float], places: list[int]) -> np.ndarray:
    """Three labels; the one named has `top`, the others share the rest."""
    probs = np.repeat(((1 - np.array(top)) / 2)[:, None], 3, axis=1)
    probs[np.arange(len(top)), places] = top
    return probs


def test_doubt_by_hand() -> None:
    # 20 rows: the row that the student is least sure of is left unanswered, and is the one mistake but one
    top = [0.5 + i / 100 for i in range(20)]
    inside = sure(top, [0] * 20)
    truth = np.array([1, *[0] * 18, 2])
    outside = sure([0.4, 0.505, 0.515, 0.9], [0, 1, 2, 0])
    found = of_doubt(inside, truth, outside)
    assert found["accuracy_at_95"] == pytest.approx(18 / 19)
    assert found["outside_answered"] == pytest.approx(2 / 4)  # from 0.51 on
    pairs = 20 * 4
    won = 20 + 19 + 18 + 0
    assert found["outside_auroc"] == pytest.approx(won / pairs)
