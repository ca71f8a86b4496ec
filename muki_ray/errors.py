"""Errors that a user can mend.

Each carries one line: what is wrong, the value received, what to do, and no credentials. Entry points print that
line and leave with exit code 2; no traceback. Anything else that is raised is a defect of this package.
"""

from __future__ import annotations

from muki_ray.uris import clean


class UserError(Exception):
    """Base of all errors that a user can mend; the message is one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(clean(message).split()))


class ConfigError(UserError):
    """The configuration is malformed or contradicts itself."""


class LabelError(UserError):
    """A teacher's label set cannot be joined with the others."""


class CorpusError(UserError):
    """The corpus, or the test set, cannot be read as the configuration says."""


class TeacherError(UserError):
    """A teacher, or a classifier to evaluate, cannot be loaded or would give wrong answers."""


class StudentError(UserError):
    """The student's base model cannot be loaded or trained as asked."""


class StoreError(UserError):
    """A folder of the run disagrees with its own manifest."""


class StorageError(StoreError, OSError):
    """Storage does not answer, or does not let us. An `OSError` too, as what failed was one."""


class ResourceError(UserError):
    """The cluster cannot give what the configuration asks for."""
