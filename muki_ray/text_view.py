"""A text as a bag of words and of pieces of words: a cheap view of a row that owes nothing to any teacher.

Words and pairs of words, and runs of 2 to 4 characters; where a script puts no spaces between words, every character
counts as one. Hashed, so there is no vocabulary to learn or to store; only how common a column is (`inverse document
frequency`) comes from the corpus. Knows scikit-learn; knows no files, no models, no Ray.

Shapes: N rows, S rows of a sample, D columns, L axes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# columns of the words, and as many of the pieces
_COLUMNS = 2**15
# what a text is about shows at its beginning; longer ones only cost time
_MOST_CHARACTERS = 2000
# a text has several times more pieces than words
_PIECES_COUNT = 0.5
# axes that a sample is seen along, and rows that they are found from
_AXES, _AXES_ROWS = 200, 2000
# axes along which rows vary less than so much of the first one's are noise
_LEAST_VARIANCE = 1e-6
# letters of scripts without spaces: Thai and Lao, Burmese, Khmer, ideographs, kana
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_ASCII_WORD = re.compile(r"\w{2,}")
# beyond this plane no living script has marks
_MARKS_END = 0x20000


@cache
def _pattern() -> re.Pattern[str]:
    """A run of two or more letters and digits, or one letter of an unspaced script.

    Marks belong to the run: `\\w` has none of them, and would cut most words of Hindi or Tamil at their vowels.
    """
    every = "".join(chr(c) for c in range(_MARKS_END) if unicodedata.category(chr(c)).startswith("M"))
    mark, letter = f"[{re.sub(f'[{_UNSPACED}]', '', every)}]", f"[^\\W{_UNSPACED}]"
    return re.compile(f"{letter}{{2,}}(?:{mark}+{letter}*)*|{letter}(?:{mark}+{letter}*)+|[{_UNSPACED}]")


def _words(text: str) -> list[str]:
    # most texts have nothing that the pattern is for, and it takes seven times as long
    found: list[str] = (_ASCII_WORD if text.isascii() else _pattern()).findall(text)
    return found


@cache
def _vectorizers() -> tuple[Any, Any]:
    # late: takes a second, and most processes need no text view
    from sklearn.feature_extraction.text import HashingVectorizer

    common = {"n_features": _COLUMNS, "alternate_sign": False, "norm": None, "dtype": np.float32}
    return (
        HashingVectorizer(ngram_range=(1, 2), tokenizer=_words, token_pattern=None, **common),
        HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), **common),
    )


def shown(texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[str]:
    """What the view reads of each row: the beginning of its text, or of both its texts. The rest here takes these."""
    if pairs is None:
        return [text[:_MOST_CHARACTERS] for text in texts]
    half = _MOST_CHARACTERS // 2
    return [f"{text[:half]}\n{pair[:half]}" for text, pair in zip(texts, pairs, strict=True)]


def counts(texts: Sequence[str]) -> tuple[Any, Any]:
    """How often each word and each piece occurs, damped (`1 + log`): two sparse matrices `[N, D / 2]`."""
    found = []
    for vectorizer in _vectorizers():
        matrix = vectorizer.transform(texts)
        matrix.data = 1.0 + np.log(matrix.data)
        found.append(matrix)
    return found[0], found[1]


def rarity(counted: tuple[Any, Any]) -> NDArray[np.float32]:
    """Smoothed inverse document frequency of every column, `[D]`: `1 + log((1 + S) / (1 + rows that have it))`.

    Args:
        counted: `counts` of the S rows.
    """
    seen = [np.bincount(matrix.indices, minlength=_COLUMNS) for matrix in counted]
    return np.asarray(
        1.0 + np.log((1.0 + counted[0].shape[0]) / (1.0 + np.concatenate(seen))), dtype=np.float32
    )


def view(counted: tuple[Any, Any], rarity_D: NDArray[np.float32]) -> Any:
    """TF-IDF, words and pieces each of length 1 (pieces then count half): a sparse matrix `[N, D]`, float32.

    Args:
        counted: `counts` of the N rows.
    """
    from scipy.sparse import diags_array, hstack
    from sklearn.preprocessing import normalize

    scaled = [
        normalize(matrix @ diags_array(part, dtype=np.float32))
        for matrix, part in zip(counted, np.split(rarity_D, 2), strict=True)
    ]
    return hstack([scaled[0], _PIECES_COUNT * scaled[1]], format="csr", dtype=np.float32)


def axes(rows: Any) -> NDArray[np.float32]:
    """The directions along which the rows of a view differ most (latent semantic analysis), `[D, L]`.

    Words that occur together share an axis, so that few rows suffice to learn what a word means. Found from the inner
    products of at most 2,000 rows, evenly spaced.

    Args:
        rows: `view` of a sample, `[S, D]`.
    """
    from scipy.linalg import eigh

    some = rows[np.unique(np.linspace(0, rows.shape[0] - 1, _AXES_ROWS).astype(np.int64))]
    count = some.shape[0]
    alike = (some @ some.T).toarray().astype(np.float64)
    variance, found = eigh(alike, subset_by_index=[max(0, count - _AXES), count - 1])
    kept = variance > _LEAST_VARIANCE * max(float(variance[-1]), _LEAST_VARIANCE)
    return np.asarray(some.T @ (found[:, kept] / np.sqrt(variance[kept])).astype(np.float32))


def folds(texts: Sequence[str], count: int) -> NDArray[np.int64]:
    """A number below `count` per row that follows from what is shown of it, so that equal rows fall together. `[N]`."""
    return np.array([zlib.crc32(text.encode()) % count for text in texts], dtype=np.int64)


def keys(texts: Sequence[str], beside_NX: NDArray[np.floating]) -> NDArray[np.uint64]:
    """A number per row that only rows of equal text and equal numbers share, but for one chance in 2**64. `[N]`.

    Args:
        beside_NX: what else tells rows apart whose texts begin alike, to the third decimal.
    """
    rows = np.ascontiguousarray(np.round(beside_NX, 3) + 0.0, dtype="<f8")  # + 0.0: no minus zero
    found = b"".join(
        hashlib.blake2b(text.encode() + row.tobytes(), digest_size=8).digest()
        for text, row in zip(texts, rows, strict=True)
    )
    return np.frombuffer(found, dtype="<u8").astype(np.uint64)
