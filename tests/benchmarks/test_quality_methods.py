import pytest
from quality_methods import NAMES, chooses, describe, method_of

from muki_ray.config_method import MukiMethod


def test_default_is_what_the_product_does_by_itself() -> None:
    method = method_of("default", 0)
    assert method == MukiMethod()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("muki_hard", {"integration"}),
        ("muki_no_margin", {"margin"}),
        ("muki_no_mc", {"score", "samples"}),  # one decision: no samples, hence a score that needs none
    ],
)
def test_an_ablation_differs_from_the_paper_in_one_setting(name: str, settings: set[str]) -> None:
    paper, other = describe("paper"), describe(name)
    assert {key for key in paper if paper[key] != other[key]} == settings


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_is_the_dropouts_where_there_is_dropout(name: str) -> None:
    one, other = method_of(name, 0), method_of(name, 1)
    if chooses(name):
        assert one is not None and other is not None
        assert (one.dropout.seed, other.dropout.seed) == (0, 1)
    else:
        assert one == other
