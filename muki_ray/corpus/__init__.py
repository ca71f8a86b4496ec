"""Text from anywhere, as one corpus of numbered rows in fixed shards."""

from muki_ray.corpus.normalise import Corpus, normalise
from muki_ray.corpus.writing import QUARANTINE

__all__ = ["QUARANTINE", "Corpus", "normalise"]
