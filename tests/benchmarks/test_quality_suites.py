import pytest
import quality_suites
from pydantic import ValidationError
from quality_suites import SCALES, Deal, Suite

from muki_ray.errors import ConfigError

AT = {"teacher_epochs": 2, "student_epochs": 3}
DEAL = {
    "about": "x",
    "teachers": {"data": "d", "into": 2},
    "max_length": 8,
    "tiny": AT,
    "small": AT,
    "full": AT,
}


@pytest.mark.parametrize("name", quality_suites.names())
def test_every_suite_file_is_valid_at_every_scale(name: str) -> None:
    suite = quality_suites.load(name)
    for scale in SCALES:
        settings = suite.at(scale)
        assert settings.teacher_models is not None
        assert len(settings.teacher_models) == len(settings.teacher_epochs) == len(suite.names)
        assert settings.student_model is not None and settings.max_length is not None


def test_blocks_are_contiguous_and_the_last_takes_the_remainder() -> None:
    deal = Deal(data="d", into=3)
    assert deal.blocks(list("gfedcba")) == {"t1": ["a", "b"], "t2": ["c", "d"], "t3": ["e", "f", "g"]}


def test_values_left_out_belong_to_no_teacher() -> None:
    assert Deal(data="d", into=2, leave_out=["b"]).blocks(list("abc")) == {"t1": ["a"], "t2": ["c"]}
    with pytest.raises(ConfigError, match="leave_out: 'z'"):
        Deal(data="d", into=2, leave_out=["z"]).blocks(list("abc"))


def test_more_teachers_than_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 teachers, but only 2 values"):
        Deal(data="d", into=3).blocks(["a", "b"])


def test_one_entry_stands_for_all_teachers_and_the_scale_fills_the_rest() -> None:
    suite = Suite.model_validate(DEAL | {"tiny": AT | {"teacher_models": ["minilm-l6"], "max_length": 4}})
    tiny, small = suite.at("tiny"), suite.at("small")
    assert (tiny.teacher_models, tiny.teacher_epochs, tiny.max_length) == (["minilm-l6"] * 2, [2, 2], 4)
    assert (tiny.student_model, tiny.train_rows, small.max_length) == ("bert-tiny", 3000, 8)


def test_the_corpus_is_drawn_from_what_the_teachers_are() -> None:
    parts = [{"name": "a", "data": "x"}, {"name": "b", "data": "y"}, {"name": "c", "data": "x"}]
    suite = Suite.model_validate(DEAL | {"teachers": parts})
    assert [one.data for one in suite.sources] == ["x", "y"]
    assert list(suite.all_tests) == ["test"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shares": {"t3": 0.5}}, "no teacher 't3'"),
        ({"shares": {"t1": 0.6, "t2": 0.5}}, "add up to 1.1"),
        ({"tiny": AT | {"teacher_models": ["mpnet"] * 3}}, "3 teacher_models for 2 teachers"),
        ({"tiny": AT | {"student_model": "gpt"}}, "no model 'gpt'"),
        ({"teachers": [{"name": "a", "data": "x"}] * 2}, "must differ"),
        ({"corpsu": []}, "corpsu"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Suite.model_validate(DEAL | change)


def test_an_unknown_suite_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no suite 'nosuch'; choose from .*trec"):
        quality_suites.load("nosuch")
