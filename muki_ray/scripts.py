"""In which script a text is written: Latin, Cyrillic, ideographs, ...

What languages do to scores and words is none of a teacher's doing: one that was tuned in English is surer of any English
text. Scripts tell apart only some languages, but need no model.

Pure. Knows Unicode's names of characters.

Shapes: N rows, S rows of a sample, G groups of scripts.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# what a text is written in shows at its beginning
_MOST_CHARACTERS = 300
# scripts that say in one character what others say in a few
_DENSE, _DENSE_COUNTS = frozenset({"CJK", "HIRAGANA", "KATAKANA"}), 3
# a script with a smaller share of the rows is no group of its own
_LEAST_SHARE = 0.1


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    if not character.isalpha():
        return ""
    # "CYRILLIC SMALL LETTER A", "CJK UNIFIED IDEOGRAPH-4E00", "FULLWIDTH LATIN ..."
    words = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    return words.partition(" ")[0]


def script(text: str) -> str:
    """The script of most of its letters, as Unicode names it; empty where there are none."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text[:_MOST_CHARACTERS])) else ""
    found: Counter[str] = Counter()
    for character in text[:_MOST_CHARACTERS]:
        name = _script(character)
        if name:
            found[name] += _DENSE_COUNTS if name in _DENSE else 1
    return max(found, key=lambda name: (found[name], name)) if found else ""


def groups(texts: Sequence[str]) -> list[str]:
    """Scripts that at least a tenth of the rows are written in, the most frequent first; at least one. `[G]`."""
    found = Counter(map(script, texts))
    ordered = sorted(found, key=lambda name: (-found[name], name))
    return [name for name in ordered if found[name] >= _LEAST_SHARE * len(texts)] or ordered[:1] or [""]


def group_of(texts: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Place of each row's script among `names`; 0, the most frequent, for all others. `[N]`."""
    places = {name: place for place, name in enumerate(names)}
    if len(names) < 2:
        return np.zeros(len(texts), dtype=np.int64)
    return np.array([places.get(script(text), 0) for text in texts], dtype=np.int64)
