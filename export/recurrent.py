"""torch's recurrent layers as ONNX's operators: torch itself would write out as many steps as an example has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_GATES = {torch.nn.LSTM: (0, 3, 1, 2), torch.nn.GRU: (1, 0, 2)}  # of torch, in ONNX's order
_OPSET = 22


def recurrence(layer: Any, input: Any, hx: Any = None) -> Any:
    """The forward of `torch.nn.LSTM` and `torch.nn.GRU` for torch.export, which computes nothing: of batches, without
    projections."""
    if layer.proj_size or input.dim() != 3:
        return type(layer).forward(layer, input, hx)
    lstm, directions = isinstance(layer, torch.nn.LSTM), 2 if layer.bidirectional else 1
    found = input.transpose(0, 1) if layer.batch_first else input
    starts = () if hx is None else hx if lstm else (hx,)
    ends = []
    for number in range(layer.num_layers):
        own = slice(directions * number, directions * (number + 1))
        found, *end = _layer(layer, number, found, [each[own] for each in starts])
        ends.append(end)
    last = tuple(torch.cat(each) for each in zip(*ends, strict=True))
    return found.transpose(0, 1) if layer.batch_first else found, last if lstm else last[0]


def _layer(layer: Any, number: int, states: Any, starts: Sequence[Any]) -> tuple[Any, ...]:
    """States (steps, batch, width) through one layer: (steps, batch, directions * size), and where it ends."""
    ways = [f"_l{number}{way}" for way in ("", "_reverse")[: 2 if layer.bidirectional else 1]]
    biases = None
    if layer.bias:
        biases = torch.stack([torch.cat([_ordered(layer, f"bias_{of}{way}") for of in ("ih", "hh")]) for way in ways])
    taken, kept = (torch.stack([_ordered(layer, f"weight_{of}{way}") for way in ways]) for of in ("ih", "hh"))
    (steps, batch, _), size, outputs = states.shape, layer.hidden_size, 3 if isinstance(layer, torch.nn.LSTM) else 2
    found, *ends = torch.onnx.ops.symbolic_multi_out(
        type(layer).__name__,
        [states, taken, kept, biases, None, *starts],
        {"hidden_size": size, "direction": "bidirectional" if layer.bidirectional else "forward"}
        | ({"linear_before_reset": 1} if isinstance(layer, torch.nn.GRU) else {}),
        dtypes=[states.dtype] * outputs,
        shapes=[(steps, len(ways), batch, size), *[(len(ways), batch, size)] * (outputs - 1)],
        version=_OPSET,
    )
    return found.transpose(1, 2).flatten(2), *ends


def _ordered(layer: Any, name: str) -> Any:
    weights = getattr(layer, name)
    return torch.cat([weights.chunk(len(_GATES[type(layer)]))[gate] for gate in _GATES[type(layer)]])


RECURRENT = dict.fromkeys(_GATES, recurrence)  # for `forwards`
