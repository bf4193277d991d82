"""Which nodes of a graph stay in fp32 when the rest goes into 16 bits, and why: decided by what was measured of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from mmrt.export import casts
from mmrt.export.casts import ANY, Format, constant, is_float
from mmrt.export.measure import Measured, losses
from mmrt.runtime import manifest as m
from mmrt.runtime.receipt import TOLERANCES

ROOM = 4  # other inputs may make so many times what these did
_NODE = 0.4  # of the tolerance of the receipts: the relative L2 error that one node may make
_ACCUMULATING = frozenset({
    "AveragePool", "Cos", "CumSum", "DFT", "Einsum", "GRU", "GlobalAveragePool", "GlobalLpPool",
    "InstanceNormalization", "LRN", "LSTM", "LogSoftmax", "LpNormalization", "LpPool", "MeanVarianceNormalization",
    "MelWeightMatrix", "RNN", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "STFT", "Sin", "Softmax", "Tan",
})  # fmt: skip
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_HEAVY = frozenset({
    "Attention", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Gemm", "GroupNormalization",
    "LayerNormalization", "MatMul", "RMSNormalization", "RotaryEmbedding",
})  # fmt: skip


class Plan:
    """Which nodes stay in fp32, and why; and which arrays are of the format at the graph's borders."""

    def __init__(self, model: ir.Model, format: Format, found: Measured, carried: set[str]) -> None:
        self.graph, self.format, self.found = model.graph, format, found
        self.most, self.loss = format.largest / ROOM, _NODE * TOLERANCES[format.precision].relative
        self.version = model.graph.opset_imports[""]
        self.nodes = {node.name: node for node in model.graph}
        self.reasons: dict[str, m.Reason] = {}
        self.borders = carried

    def decide(self, caches: Mapping[str, str], exact: Collection[str]) -> None:
        """By all that was measured of values and nodes."""
        for output in self.graph.outputs:
            if output.name in exact:
                for value in filter(is_float, casts.decides(output).values()):
                    self._hold_back(value)
        weights = [value for value in self.graph.initializers.values() if is_float(value)]
        weight_losses = losses(weights, self.format)
        for node in self.nodes.values():
            if self._floats(node) and not casts.can_be_half(node, self.version, self.format):
                self._stay(node, "unsupported")
            elif node.op_type in _ACCUMULATING:
                self._stay(node, "accumulation")
        for value in self._values():
            seen = self.found.values.get(value.name)
            if seen is None or seen.largest > self.most:  # what was not seen is not trusted either
                self._hold(value, "overflow")
            elif seen.loss > self.loss:
                self._hold(value, "underflow")
        for name, largest in self.found.scores.items():
            if not largest <= self.most:  # NaN too
                self._read_exactly(self.nodes[name], "overflow")
        for value in weights:
            if weight_losses[value.name] > self.loss:
                for node, index in value.uses():
                    if node.name in self.nodes and casts.takes_half(node, index, self.version, self.format):
                        self._stay(node, "weights")
        for name, error in self.found.errors.items():
            if error > self.loss:
                self._read_exactly(self.nodes[name], "rounding")
        for node in self.nodes.values():
            if node.op_type in _COMPARISONS and any(map(is_float, node.inputs)):
                self._read_exactly(node, "choice")
        for old, new in caches.items():
            if not {old, new} <= self.borders:
                self.borders -= {old, new}
        self._between()

    def keep(self, names: Sequence[str]) -> None:
        """Let these nodes stay too, and what comes to lie between."""
        for name in names:
            self._stay(self.nodes[name], "error")
        self._between()

    def worthwhile(self) -> bool:
        """Whether anything heavy is in 16 bits, or anything at all in a graph with nothing heavy."""
        half = [
            node for name, node in self.nodes.items() if name not in self.reasons and any(map(is_float, node.outputs))
        ]
        heavy = any(node.op_type in _HEAVY for node in self.nodes.values())
        return any(node.op_type in _HEAVY or not heavy for node in half)

    def islands(self) -> Iterator[m.Island]:
        """For the manifest, in the graph's order."""
        for name, node in self.nodes.items():
            if name in self.reasons:
                seen = [self.found.values[v.name] for v in node.outputs if v.name in self.found.values]
                finite = (
                    [_finite(min(each.low for each in seen)), _finite(max(each.high for each in seen))] if seen else []
                )
                yield m.Island(
                    node=name[:200],
                    op=node.op_type,
                    reason=self.reasons[name],
                    range=(finite[0], finite[1]) if finite else None,
                )

    def _floats(self, node: ir.Node) -> bool:
        return any(is_float(value) for value in (*node.inputs, *node.outputs))

    def _values(self) -> Iterator[ir.Value]:
        yield from filter(is_float, self.graph.inputs)
        for node in self.nodes.values():
            yield from filter(is_float, node.outputs)

    def _stay(self, node: ir.Node, reason: m.Reason) -> None:
        self.reasons.setdefault(node.name, reason)

    def _hold(self, value: ir.Value, reason: m.Reason) -> None:
        """A value is fp32 always: who writes it and who reads it stay."""
        if (producer := value.producer()) is not None:
            self._stay(producer, reason)
        for node, _ in value.uses():
            if node.name in self.nodes and node.op_type not in ANY:
                self._stay(node, reason)
        self.borders.discard(value.name)

    def _hold_back(self, value: ir.Value) -> None:
        """A value is what it is in fp32, and who else reads it may round it."""
        if (producer := value.producer()) is not None:
            self._stay(producer, "choice")
        self.borders.discard(value.name)

    def _read_exactly(self, node: ir.Node, reason: m.Reason) -> None:
        """A node stays, and what it reads comes from nodes that stay, back to one that is heavy."""
        self._stay(node, reason)
        for value in node.inputs:
            producer = value.producer() if is_float(value) else None
            if producer is None or producer.name in self.reasons:
                continue
            if producer.op_type in _HEAVY:
                self._stay(producer, reason)
            else:
                self._read_exactly(producer, reason)

    def _between(self) -> None:
        """Light nodes that read and write nothing but what stays in fp32 stay as well: that saves the casts."""
        light = {
            name
            for name, node in self.nodes.items()
            if name not in self.reasons
            and node.op_type not in _HEAVY
            and self._floats(node)
            and (node.op_type not in ANY or is_float(node.outputs[0]))
        }
        while leaving := {name for name in light if not self._enclosed(self.nodes[name], light)}:
            light -= leaving
        for name in light:
            self.reasons[name] = "between"

    def _enclosed(self, node: ir.Node, light: Collection[str]) -> bool:
        def wide(other: ir.Node | None) -> bool:
            return other is None or other.name in self.reasons or other.name in light

        read = [value for value in node.inputs if is_float(value) and not constant(value)]
        made = [value for value in node.outputs if is_float(value)]
        return (
            all(wide(value.producer()) and value.name not in self.borders for value in read)
            and all(value.name not in self.borders for value in made)
            and all(user.op_type in ANY or wide(self.nodes.get(user.name)) for v in made for user, _ in v.uses())
        )


def _finite(number: float) -> float:
    return float(np.clip(np.nan_to_num(number, nan=0.0), -3.4e38, 3.4e38))
