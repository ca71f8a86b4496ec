"""Captured forward passes, shared by the models of this process that are built alike.

Tracing a classifier takes a second, whatever its size; many small teachers of one architecture would spend most of
their loading on it. A graph says nothing of weights, so models that differ in weights and label names alone can share
one. What a graph does depend on is in the key: the class, the tree of modules and every plain setting on them (dropout
rates and training mode too), the configuration, device, precision, and the shape of the probe. Whoever uses a graph
still compares its answer with the model's own.

Knows Torch; knows no dropout, no masks.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from muki_ray.teachers.capture import Captured, capture

# architectures that are kept
_MOST = 32
# what no forward pass depends on, in a configuration or on a model; how many labels there are shows in the weights
_NAMES = {"id2label", "label2id", "_name_or_path", "name_or_path", "transformers_version", "architectures"}
_PLAIN = (bool, int, float, str, type(None))


_kept: OrderedDict[Hashable, Captured] = OrderedDict()


def capture_once(model: nn.Module, probe: Mapping[str, torch.Tensor]) -> Captured:
    """`capture`, or the same graph with this model's weights where one that is built alike was captured before.

    Every caller gets a graph of its own, to change as it likes.

    Raises:
        UncapturableError: as `capture`.
    """
    key = _built(model, probe)
    kept = _kept.pop(key, None)
    if kept is None:
        kept = capture(model, probe)
        kept = replace(kept, constants={n: t for n, t in kept.constants.items() if n not in kept.weights})
    _kept[key] = kept  # the last one that was asked for comes last
    while len(_kept) > _MOST:
        _kept.popitem(last=False)
    return _with_weights(kept, model)


def _built(model: nn.Module, probe: Mapping[str, torch.Tensor]) -> Hashable:
    """All that a graph depends on, and no weight."""
    modules = tuple(
        (
            name,
            type(module),
            tuple((k, v) for k, v in vars(module).items() if type(v) in _PLAIN and k not in _NAMES),
        )
        for name, module in model.named_modules()
    )
    weights = tuple(
        (name, tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in _weights(model).items()
    )
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    plain = json.dumps({k: v for k, v in settings.items() if k not in _NAMES}, sort_keys=True, default=repr)
    attention = str(getattr(config, "_attn_implementation", ""))
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in probe.items())
    return modules, weights, plain, attention, shapes


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name that it has."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _with_weights(kept: Captured, model: nn.Module) -> Captured:
    """A copy of the graph, and this model's tensors."""
    graph = fx.Graph()
    own: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(kept.graph, own)
    graph.output(result)
    tensors = _weights(model)
    return Captured(
        graph,
        {name: own[node] for name, node in kept.inputs.items()},
        {own[node]: tensor for node, tensor in kept.constants.items()}
        | {own[node]: tensors[name].detach() for node, name in kept.weights.items()},
        {own[node]: name for node, name in kept.weights.items()},
        kept.rows,
        kept.tokens,
    )
