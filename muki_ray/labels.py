"""Label spaces: the union of the teachers' labels, joined by name.

Pure: knows no files, no models, no Ray.

Shapes: C union labels, C_m labels of teacher m.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muki_ray.errors import LabelError

# what tools write where nobody named the labels: positions, from 0 or 1, with or without a word
_NUMBERED = re.compile(r"(?:label|class)?[ _-]?(\d+)", re.IGNORECASE)
_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class TeacherLabels:
    """One teacher's labels under their final names, in the order of its logits."""

    teacher: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class LabelSpace:
    """The union `Y` of the label sets (MUKI section 2.1), and where each teacher's labels lie in it.

    Attributes:
        names: the union, sorted, so that it does not depend on the order of the teachers.
        teachers: names of the teachers, in configuration order.
        index: per teacher, positions of its labels in `names`, `int64 [C_m]`. Two labels of one teacher
            may share a position when they were merged on purpose.
    """

    names: tuple[str, ...]
    teachers: tuple[str, ...]
    index: tuple[NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Position -> name, as Hugging Face configurations want it."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Name -> position."""
        return {name: i for i, name in enumerate(self.names)}

    def owners(self, label: str) -> tuple[int, ...]:
        """Positions of the teachers that know this label; empty if none does."""
        position = self.label2id.get(label)
        return tuple(m for m, index in enumerate(self.index) if position is not None and position in index)


def _is_position(name: str, position: int) -> bool:
    """Whether a label is called by where it stands; other numbers, such as `404` or `2019`, are names."""
    found = _NUMBERED.fullmatch(name)
    return found is not None and (bool(_UNNAMED.fullmatch(name)) or int(found[1]) in (position, position + 1))


def teacher_labels(
    teacher: str,
    id2label: Mapping[int, str],
    rename: Mapping[str, str] | None = None,
    merge: bool = False,
) -> TeacherLabels:
    """One teacher's labels under their final names.

    Args:
        teacher: its name, for messages.
        id2label: the model's own map, logit position -> label.
        rename: label in the model -> label in the union; labels not named keep their name.
        merge: allow several labels of this teacher to become one.

    Raises:
        LabelError: fewer than two labels; positions not 0..C_m-1; unnamed labels (`LABEL_0`, `0`, `class 0`)
            that `rename` does not name (to itself is a name, too); a map entry that names no label; two labels
            that become one without `merge`.
    """
    rename = dict(rename or {})
    if len(id2label) < 2:
        raise LabelError(
            f"teacher {teacher!r} has {len(id2label)} label(s); a classifier needs at least 2 "
            "(regression heads cannot be merged)"
        )
    if sorted(id2label) != list(range(len(id2label))):
        raise LabelError(
            f"teacher {teacher!r}: id2label has positions {_short(list(map(str, sorted(id2label))))}, "
            f"not 0..{len(id2label) - 1}; mend its config.json"
        )
    own = [str(id2label[position]) for position in range(len(id2label))]
    if len(set(own)) < len(own):
        raise LabelError(
            f"teacher {teacher!r} names label {_first_twice(own)!r} twice; mend id2label in its config.json"
        )
    unknown = sorted(set(rename) - set(own))
    if unknown:
        raise LabelError(
            f"teacher {teacher!r}: `labels` renames {unknown[0]!r}, which is not one of its labels "
            f"{_short(own)}; use the model's own names"
        )
    names = [rename.get(name, name).strip() for name in own]
    unnamed = [name for i, name in enumerate(own) if name not in rename and _is_position(name.strip(), i)]
    if unnamed:
        key = unnamed[0] if unnamed[0].isidentifier() else f'"{unnamed[0]}"'  # a bare 0 is no text in YAML
        raise LabelError(
            f"teacher {teacher!r} has unnamed labels ({unnamed[0]}): joining by name would be wrong; "
            f"give them names with labels: {{{key}: <name>, ...}}; what is a name already, such as a number of stars, "
            f'is mapped to itself: {{{key}: "{unnamed[0]}", ...}}'
        )
    if not all(names):
        raise LabelError(f"teacher {teacher!r} has an empty label name; name it with `labels`")
    if len(set(names)) < len(names) and not merge:
        raise LabelError(
            f"teacher {teacher!r}: two of its labels become {_first_twice(names)!r}; "
            "set merge_labels: true if that is meant"
        )
    if len(set(names)) < 2:
        raise LabelError(
            f"teacher {teacher!r} has only label {names[0]!r} after renaming; a classifier needs at least 2"
        )
    return TeacherLabels(teacher, tuple(names))


def join(teachers: Sequence[TeacherLabels]) -> LabelSpace:
    """The union by name; labels that several teachers know are one label."""
    if not teachers:
        raise LabelError("there is no teacher; give at least one")
    names = tuple(sorted({name for teacher in teachers for name in teacher.names}))
    position = {name: i for i, name in enumerate(names)}
    index = tuple(
        np.array([position[name] for name in teacher.names], dtype=np.int64) for teacher in teachers
    )
    return LabelSpace(names, tuple(teacher.teacher for teacher in teachers), index)


def near_collisions(space: LabelSpace) -> list[tuple[str, str]]:
    """Pairs that differ only in case, spaces, punctuation or Unicode form: probably one, spelled twice."""
    seen: dict[str, str] = {}
    pairs = []
    for name in space.names:
        # letters, digits and the marks that belong to letters in many scripts
        form = unicodedata.normalize("NFKC", name).casefold()
        key = "".join(c for c in form if unicodedata.category(c)[0] in "LMN")
        if key and key in seen:
            pairs.append((seen[key], name))
        seen.setdefault(key, name)
    return pairs


def _first_twice(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


def _short(names: Sequence[str], most: int = 8) -> str:
    return "[" + ", ".join(names[:most]) + (", ..." if len(names) > most else "") + "]"
