"""What is said where Monte-Carlo dropout is asked of a model that cannot do it."""

from __future__ import annotations

from muki_ray.errors import TeacherError


def no_dropout(name: str, what: str, remedy: str | None) -> TeacherError:
    """The error for a teacher on which Monte-Carlo dropout would return K equal samples."""
    ways = f"{remedy}, or " if remedy else ""
    return TeacherError(
        f"teacher {name!r}: {what}, so Monte-Carlo dropout would return equal samples; {ways}use method.score: entropy with method.samples: 0"
    )
