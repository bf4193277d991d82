"""What numbers flow through a graph, and what 16 bits would make of them: measured inside one run of the fp32 graph.

Next to every float a few reductions give its range and what rounding it loses, and every operator that computes stands
there a second time, reading its inputs rounded. Only scalars leave the graph, and all that measures a value stands
behind it and runs there, so that the memory is about that of an ordinary run, whatever the graph's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from mmrt.export.casts import ANY, F32, MOVES, Format, constant, is_float, nested, release
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.engines.onnx import OnnxEngine

_NEAR = frozenset({"ArgMax", "ArgMin", "Cast", "TopK"})  # a pixel may be one off, and one of two that tie be chosen
_SCORES = 3  # the output of an Attention with the products of queries and keys


@dataclass(frozen=True)
class Seen:
    """A value: the smallest and largest number in it, and the relative L2 error of rounding it to 16 bits."""

    low: float
    high: float
    loss: float

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))


@dataclass
class Measured:
    """All calls together. `values` by name; `errors`, by the names of nodes, are the relative L2 errors of what they
    write when the floats that they read are rounded; `scores` is the largest magnitude of what a node that is an
    Attention multiplies out inside; `outputs` are the graph's own, call by call."""

    values: dict[str, Seen] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    outputs: list[dict[str, AnyArray]] = field(default_factory=list)


def measure(model: ir.Model, beside: Path, calls: Sequence[Mapping[str, AnyArray]], format: Format) -> Measured:
    """Run the calls through the graph, which is changed; it is written beside the file that has its weights."""
    names = [value.name for value in model.graph.outputs]
    probes = _Probes(model, format)
    found = Measured()
    with written(model, beside, "probe") as file:
        runner = session(file)
        for call in calls:
            outputs = runner.run(None, dict(call))
            found.outputs.append(dict(zip(names, outputs, strict=False)))
            probes.read([float(each) for each in outputs[len(names) :]], found)
    return found


class written:  # noqa: N801
    """A model as a file beside another, for as long as it is used."""

    def __init__(self, model: ir.Model, beside: Path, kind: str) -> None:
        self.path = beside.with_name(f"{beside.name}.{kind}")
        self.model = model

    def __enter__(self) -> Path:
        ir.save(self.model, self.path, format="protobuf")
        return self.path

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


_COPYING = ("ConstantFolding", "NchwcTransformer")  # optimizers of ONNX Runtime that make new weights of old ones


def session(file: Path) -> ort.InferenceSession:
    """An ONNX file as it is, whatever its borders."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    _save_memory(options)
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # the file's, or all that measures would come last
    options.enable_mem_reuse = False  # it takes an attention's products to be as many as another's
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=[*_COPYING])


class RoundedEngine(OnnxEngine):
    """A graph that `casts.rounded` has made, whose weights are those of 16 bits, made wide when they are needed."""

    def __init__(self, graph: str, spec: m.Graph, file: Path) -> None:
        super().__init__(graph, spec, file, without=_COPYING)

    def _model(self, file: Path, options: ort.SessionOptions) -> str | bytes:
        _save_memory(options)
        return str(file)


def _save_memory(options: ort.SessionOptions) -> None:
    """It goes back as soon as it is not needed, and there are no copies of weights."""
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")


class _Probes:
    """The nodes that measure, each behind what it measures; `_order` says what their scalars are."""

    def __init__(self, model: ir.Model, format: Format) -> None:
        self._graph, self._format = model.graph, format
        self._order: list[_Figure] = []  # one for each scalar
        self._rounded: dict[ir.Value, ir.Value] = {}
        nodes = list(model.graph)
        self._first = nodes[0]
        self._last: ir.Node | None = None  # new ones come behind it
        for value in filter(is_float, model.graph.inputs):
            self._value(value)
        for node in nodes:
            self._last = node
            for value in filter(is_float, node.outputs):
                self._value(value)
            self._node(node)

    def read(self, scalars: Sequence[float], found: Measured) -> None:
        """Add a call's figures to those of others."""
        figures = dict(zip(self._order, scalars, strict=True))
        for figure, scalar in figures.items():
            value, node = figure.value, figure.node
            if figure.kind == "low":
                low, high = scalar, figures[_Figure("high", value)]
                loss = _ratio(figures[_Figure("loss", value)], figures[_Figure("norm", value)])
                before = found.values.get(value, Seen(math.inf, -math.inf, 0.0))
                found.values[value] = Seen(min(low, before.low), max(high, before.high), max(loss, before.loss))
            if figure.kind in ("least", "most"):
                found.scores[node] = float(np.fmax(abs(scalar), found.scores.get(node, 0.0)))
            if figure.kind == "error":
                error = _ratio(scalar, figures[_Figure("norm", value)])
                found.errors[node] = max(error, found.errors.get(node, 0.0))
            if figure.kind == "differs":
                found.errors[node] = max(math.inf if scalar else 0.0, found.errors.get(node, 0.0))

    def _value(self, value: ir.Value) -> None:
        difference = self._add("Sub", [value, self._round(value)])
        self._put(_Figure("low", value.name), "ReduceMin", value)
        self._put(_Figure("high", value.name), "ReduceMax", value)
        self._put(_Figure("norm", value.name), "ReduceSumSquare", value)
        self._put(_Figure("loss", value.name), "ReduceSumSquare", difference)

    def _node(self, node: ir.Node) -> None:
        read = [value for value in node.inputs if is_float(value) and not constant(value)]
        if not read or node.op_type in MOVES or node.op_type in ANY - {"Cast"} or any(True for _ in nested(node)):
            return
        inputs = [self._round(v) if is_float(v) and not constant(v) else v for v in node.inputs]
        attends = node.op_type == "Attention" and len(node.outputs) == 1
        count = _SCORES + 1 if attends else len(node.outputs)
        twin = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=count)
        self._insert(twin)
        if attends:
            twin.outputs[1].name = twin.outputs[2].name = ""
            twin.outputs[_SCORES].name = f"{node.outputs[0].name}.scores"
            self._put(_Figure("least", node.outputs[0].name, node.name), "ReduceMin", twin.outputs[_SCORES])
            self._put(_Figure("most", node.outputs[0].name, node.name), "ReduceMax", twin.outputs[_SCORES])
        for ours, theirs in zip(node.outputs, twin.outputs, strict=False):
            if ours.dtype is None:  # left out
                continue
            theirs.name, theirs.type = f"{ours.name}.twin", ours.type
            if is_float(ours):
                difference = self._add("Sub", [ours, theirs])
                self._put(_Figure("error", ours.name, node.name), "ReduceSumSquare", difference)
            elif node.op_type not in _NEAR:
                same = self._add("Equal", [ours, theirs])
                differs = self._add("Cast", [self._add("Not", [same])], {"to": F32})
                self._put(_Figure("differs", ours.name, node.name), "ReduceMax", differs)

    def _round(self, value: ir.Value) -> ir.Value:
        if value not in self._rounded:
            half = self._add("Cast", [value], {"to": self._format.type})
            self._rounded[value] = self._add("Cast", [half], {"to": F32})
        return self._rounded[value]

    def _add(self, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int] | None = None) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        self._insert(node)
        node.outputs[0].name = f"probe.{self._graph.num_nodes()}"
        return node.outputs[0]

    def _insert(self, node: ir.Node) -> None:
        if self._last is None:
            self._graph.insert_before(self._first, node)
        else:
            self._graph.insert_after(self._last, node)
        self._last = node

    def _put(self, figure: _Figure, op: str, value: ir.Value) -> None:
        scalar = self._add(op, [value], {"keepdims": 0})
        scalar.type, scalar.shape = ir.TensorType(F32), ir.Shape(())
        self._graph.outputs.append(scalar)
        self._order.append(figure)


class _Figure(NamedTuple):
    """What a scalar says, and of which value, as which node writes it."""

    kind: Literal["low", "high", "norm", "loss", "error", "differs", "least", "most"]
    value: str
    node: str = ""


def _ratio(error: float, norm: float) -> float:
    """The relative L2 error that two sums of squares say; 0 for what has no finite norm."""
    if norm == 0 or not math.isfinite(norm):
        return 0.0
    return math.sqrt(error / norm) if math.isfinite(error) else math.inf


def losses(weights: Iterable[ir.Value], format: Format) -> dict[str, float]:
    """The relative L2 error of rounding each weight; infinite where one is too large."""
    found = {}
    for value in weights:
        wide = value.const_value.numpy().astype(np.float32, copy=False)
        narrow = format.rounded(wide).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            norm, error = np.linalg.norm(wide), np.linalg.norm(wide - narrow)
        found[value.name] = 0.0 if not norm or not np.isfinite(norm) else float(error / norm)
        if np.isinf(narrow).any() and not np.isinf(wide).any():
            found[value.name] = math.inf
        del wide
        release(value.const_value)
    return found
