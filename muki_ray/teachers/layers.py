"""Which layer of a stack a module call belongs to.

Knows names only: a stack is modules called `<path>.0`, `<path>.1`, ... , one for each layer, or one module that is
called once per layer (shared weights).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# (path in the classifier, key of the call): a module that is called twice has one path and two keys
Call = tuple[str, str]


class LayerNumbers:
    """Layer of any call inside the stack.

    Args:
        calls: all calls, in the order they were made.
        depth: number of layers.
    """

    def __init__(self, calls: Iterable[Call], depth: int | None) -> None:
        ordered = list(dict.fromkeys(calls))
        self.known = False
        self._layers: dict[Call, int] = {}
        if not depth:
            return
        lists: dict[str, list[tuple[int, Call]]] = {}
        repeated: dict[str, list[Call]] = {}
        for call in ordered:
            match = re.fullmatch(r"(.+)\.(\d+)", call[0])
            if match:
                lists.setdefault(match[1], []).append((int(match[2]), call))
            repeated.setdefault(call[0], []).append(call)
        stacks = [found for found in lists.values() if sorted(i for i, _ in found) == list(range(depth))]
        shared = [found for path, found in repeated.items() if depth > 1 and len(found) == depth]
        if len(stacks) == 1:
            self._layers = {call: i for i, call in stacks[0]}
        elif not stacks and shared:
            outermost = min(shared, key=lambda found: len(found[0][0]))
            self._layers = {call: i for i, call in enumerate(outermost)}
        self.known = bool(self._layers)

    def of(self, stack: Sequence[Call]) -> int | None:
        """Layer of something computed inside these calls, outermost first; None outside the layers."""
        return next((self._layers[call] for call in stack if call in self._layers), None)
