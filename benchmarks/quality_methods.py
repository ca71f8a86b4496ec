"""The methods by name: what the table calls them, and the product's configuration behind each.

`muki_*` differ from `paper` in one setting each, `default_*` from the default. Knows the configuration; measures nothing.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from muki_ray.config_method import AnyMethod, Method

_STUDENTS: dict[str, dict[str, Any]] = {
    "default": {},
    # the default, less one of its parts
    "default_no_cotraining": {"cotraining": False},
    "default_no_embedding": {"embedding": False},
    "default_no_mc": {"score": "entropy", "samples": 0},
    "paper": {"kind": "paper"},
    "muki_hard": {"kind": "paper", "integration": "hard"},
    "muki_no_margin": {"kind": "paper", "margin": False},
    "muki_no_mc": {"kind": "paper", "score": "entropy", "samples": 0},
    "vanilla_kd": {"kind": "vanilla_kd"},
    "uhc": {"kind": "uhc"},
    "dfa": {"kind": "dfa"},
    "cfl": {"kind": "cfl"},
}
UPPER_BOUND = "upper_bound"  # the student, trained on the corpus with gold labels
ENSEMBLE = "ensemble"  # no student: softmax over all teachers' logits side by side
BIASED_ENSEMBLE = "ensemble_bias"  # the same, with a bias per teacher: see `quality_bias.py`
BEST_TEACHER = (
    "best_teacher"  # no student: the teacher with the best accuracy on the test, chosen by gold labels
)
# answers without a student
DIRECT = (ENSEMBLE, BIASED_ENSEMBLE, BEST_TEACHER)
NAMES = [UPPER_BOUND, *_STUDENTS, *DIRECT]


def method_of(name: str, seed: int) -> AnyMethod | None:
    """The configuration of a method whose dropout is drawn from `seed`; None where teachers are not integrated."""
    if name not in _STUDENTS:
        return None
    settings = dict(_STUDENTS[name])
    if chooses(name):
        settings["dropout"] = {"seed": seed}
    method: AnyMethod = TypeAdapter(Method).validate_python(settings)
    return method


def chooses(name: str) -> bool:
    """Whether a score decides which teacher is believed."""
    settings = _STUDENTS.get(name)
    return settings is not None and settings.get("kind", "muki") in ("muki", "paper")


def describe(name: str) -> dict[str, Any]:
    """The settings behind a name, for the record."""
    method = method_of(name, 0)
    return {} if method is None else method.model_dump(mode="json", exclude={"dropout": {"seed"}})
