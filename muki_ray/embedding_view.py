"""What an encoder makes of texts, as a view of them beside their words.

Pure: arrays in, arrays out. Knows no encoder: whoever has one gives it as `Embed`.

Shapes: S rows of a sample, E width of an embedding, L axes, G scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from muki_ray.cotraining_rounds import means

# embeddings `[S, E]` of S texts; None where the encoder gives none
Embed = Callable[[Sequence[str]], NDArray[np.float32] | None]

# axes that rows are seen along
_AXES = 200
# axes along which rows vary less than so much of the first one's are noise
_LEAST_VARIANCE = 1e-6
# length of the mean row; words have 1: an embedding that tells teachers apart should not have to shout
_LENGTH = 3.0


def principal(embedded_SE: NDArray[np.floating], group_S: NDArray[np.int64]) -> NDArray[np.float64]:
    """The axes along which the rows of each script differ most, scaled to a root mean square length of 3. `[S, L]`

    Each script's mean is taken off first: in which language a text is says nothing of its teacher.

    Args:
        group_S: place of each row's script.
    """
    rows = np.array(embedded_SE, dtype=np.float64)
    rows -= means(rows, group_S)[group_S]
    variance, found = (part[..., -_AXES:] for part in np.linalg.eigh(rows.T @ rows))
    kept = variance > _LEAST_VARIANCE * max(float(variance[-1]), 1e-12)
    seen = rows @ found[:, kept]
    length = float(np.sqrt((seen**2).sum(axis=1).mean()))
    return np.asarray(seen * (_LENGTH / length) if length > 0 else seen)
