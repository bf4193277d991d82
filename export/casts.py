"""Types and casts: an ONNX graph in floats of 16 bits, once it is known which of its nodes stay in fp32.

Converters that there are (onnxruntime's `float16`, onnxconverter-common) keep nodes by name too, but know neither what
lives between graphs in fp16 nor the operators of opsets 23 and 24, cast around every node that is kept, and hold all
weights in memory several times.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError

F32 = ir.DataType.FLOAT


@dataclass(frozen=True)
class Format:
    """A floating-point format of 16 bits: as precisions, arrays and ONNX name it, and its largest number."""

    precision: Literal["fp16", "bf16"]
    dtype: Literal["float16", "bfloat16"]
    type: ir.DataType
    largest: float

    def rounded(self, array: AnyArray) -> AnyArray:
        """The array in this format, to nearest."""
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(self.type.numpy())


FORMATS = {
    "fp16": Format("fp16", "float16", ir.DataType.FLOAT16, 65504.0),
    "bf16": Format("bf16", "bfloat16", ir.DataType.BFLOAT16, (2 - 2**-7) * 2.0**127),
}
_HALF = frozenset(format.type for format in FORMATS.values())
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "TensorScatter", "Tile", "Transpose", "Unsqueeze",
    "Where",
})  # fmt: skip
ANY = frozenset(("Cast", "Shape", "Size", "IsNaN", "IsInf", "NonZero"))  # operators that take a float of any width
_OWN_DTYPE = frozenset({
    "Bernoulli", "EyeLike", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip


def load(path: str) -> ir.Model:
    """An ONNX file, weights left where they are, constants among them. Raises `ExportError` where it has functions."""
    model = ir.load(path)
    if model.functions:
        raise ExportError(f"{path}: has functions of its own, of which no other precision is made")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.NameFixPass()(model)
    if any(value.name and value.dtype is None for node in model.graph for value in node.outputs):
        common.ShapeInferencePass()(model)
    return model


def has_sequences(path: Path) -> bool:
    """Whether values of an ONNX file are sequences of tensors, whose types do not survive what `load` does."""
    values = (value for node in ir.load(path).graph.all_nodes() for value in node.outputs)
    return any(isinstance(value.type, ir.SequenceType) or "Sequence" in value.producer().op_type for value in values)


def is_float(value: ir.Value | None) -> bool:
    """Whether it is float32."""
    return value is not None and value.dtype == F32


def constant(value: ir.Value) -> bool:
    """Whether it is a weight or another constant of the graph."""
    return value.is_initializer() and value.const_value is not None


def nested(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes in the bodies of an If, Loop or Scan, at any depth."""
    for attribute in node.attributes.values():
        graphs = {ir.AttributeType.GRAPH: [attribute.value], ir.AttributeType.GRAPHS: attribute.value}
        for graph in graphs.get(attribute.type, []):
            yield from graph.all_nodes()


def can_be_half(node: ir.Node, version: int, format: Format) -> bool:
    """Whether ONNX has the operator in the format wherever this node has float32."""
    if node.op_type in _OWN_DTYPE or any(True for _ in nested(node)):
        return False
    sides = ((node.inputs, "inputs"), (node.outputs, "outputs"))
    return all(
        takes_half(node, index, version, format, side) is not None
        for values, side in sides
        for index, value in enumerate(values)
        if is_float(value)
    )


def decides(value: ir.Value) -> dict[str, ir.Value]:
    """The values that a value's numbers are made of, itself among them, by name; what only lends its shape is none."""
    found: dict[str, ir.Value] = {}
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value.name in found:
            continue
        found[value.name] = value
        producer = value.producer()
        if producer is not None and producer.op_type not in ("Shape", "Size"):
            waiting += [each for node in (producer, *nested(producer)) for each in node.inputs if each is not None]
    return found


def takes_half(node: ir.Node, index: int, version: int, format: Format, side: str = "inputs") -> bool | None:
    """Whether an input (output) can be of the format; False where it is float32 always, None where ONNX knows none."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return None
    formals = getattr(schema, side)
    formal = formals[min(index, len(formals) - 1)]
    if f"tensor({format.dtype})" in formal.types:
        return True
    return False if formal.type_str == "tensor(float)" else None


def to_half(model: ir.Model, format: Format, wide: Collection[str], borders: Collection[str]) -> None:
    """Put all but the nodes named in `wide` into the format, and those of the graph's inputs and outputs in
    `borders`."""
    _Half(model, format, wide, borders).all()


class _Half:
    def __init__(self, model: ir.Model, format: Format, wide: Collection[str], borders: Collection[str]) -> None:
        self.graph, self.wide, self.borders = model.graph, wide, borders
        self.format, self.half = format, format.type
        self.version = model.graph.opset_imports[""]
        self.nodes = list(model.graph)
        values = [*self.graph.inputs, *self.graph.initializers.values(), *(v for n in self.nodes for v in n.outputs)]
        self.floats = {value for value in values if is_float(value)}
        self.casts: dict[ir.Value, ir.Value] = {}

    def all(self) -> None:
        for value in self.graph.inputs:
            if value in self.floats and value.name in self.borders:
                _retype(value, self.half)
        for node in self.nodes:
            if node.name not in self.wide:
                self._narrow(node)
        self._weights()
        for node in self.nodes:
            for user, index, value in self._uses(node):
                if not constant(value) and value.dtype != (wanted := self._wanted(node, user, index, value)):
                    user.replace_input_with(index, self._cast(value, wanted))
        self._outputs()

    def _narrow(self, node: ir.Node) -> None:
        for value in node.outputs:
            if value in self.floats:
                _retype(value, self.half)
        if node.op_type == "Cast" and node.outputs[0] in self.floats:
            node.attributes["to"] = ir.AttrInt64("to", self.half)
        if node.op_type == "ConstantOfShape" and node.outputs[0] in self.floats:
            fill = (
                node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
            )
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(self.format.rounded(fill)))
        if node.op_type == "Attention":
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", F32)

    def _uses(self, node: ir.Node) -> Iterator[tuple[ir.Node, int, ir.Value]]:
        """What a node and the bodies in it read of this graph's floats."""
        for user in (node, *nested(node)):
            for index, value in enumerate(user.inputs):
                if value in self.floats:
                    yield user, index, value

    def _wanted(self, node: ir.Node, user: ir.Node, index: int, value: ir.Value) -> ir.DataType:
        if user.op_type in ANY:
            return value.dtype
        half = node.name not in self.wide and takes_half(user, index, self.version, self.format)
        return self.half if half else F32

    def _weights(self) -> None:
        """Weights take the type of their users; where these differ, there are two of it."""
        users: dict[ir.Value, dict[ir.DataType, list[tuple[ir.Node, int]]]] = {}
        for node in self.nodes:
            for user, index, value in self._uses(node):
                if constant(value):
                    wanted = self._wanted(node, user, index, value)
                    users.setdefault(value, {}).setdefault(wanted, []).append((user, index))
        for value, wanted in users.items():
            if self.half not in wanted:
                continue
            name = f"{value.name}.{self.format.precision}"
            half = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self.half))
            half.const_value = _narrowed(value.const_value, self.format, name)
            self.graph.register_initializer(half)
            for user, index in wanted[self.half]:
                user.replace_input_with(index, half)
            if len(wanted) == 1 and not value.is_graph_output():
                del self.graph.initializers[value.name]

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        if value not in self.casts:
            self.casts[value] = cast(self.graph, value, to, f"{value.name}.{_SUFFIX[to]}")
        return self.casts[value]

    def _outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            wanted = self.half if value.name in self.borders else F32
            if value not in self.floats or value.dtype == wanted:
                continue
            name, value.name = value.name, f"{value.name}.{_SUFFIX[value.dtype]}"
            self.graph.outputs[index] = cast(self.graph, value, wanted, name)


_SUFFIX = {F32: "fp32", **{format.type: format.precision for format in FORMATS.values()}}


def cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    """The value in another type, as early as it can be."""
    node = ir.node("Cast", [value], {"to": to}, name=f"cast_{name}")
    made = node.outputs[0]
    made.name, made.shape = name, value.shape
    _retype(made, to)
    if (producer := value.producer()) is not None:
        producer.append(node)
    else:
        graph.insert_before(graph.node(0), node)
    return made


def rounded(model: ir.Model) -> None:
    """A graph in 16 bits becomes one in fp32, at its borders too, of which every result is rounded to 16 bits.

    That is what it means to run it in them: ONNX Runtime's CPU, which has few operators in fp16, leaves out the
    rounding between those that it runs in fp32, and of bf16 it has none. The weights stay where and what they are.
    """
    graph = model.graph
    nodes = list(graph)
    for value in graph.initializers.values():
        if value.dtype in _HALF and value.uses():
            _replace(value, cast(graph, value, F32, f"{value.name}.wide"))
    for value in graph.inputs:
        _round(graph, value)
    for node in nodes:
        for value in node.outputs:
            if node.op_type not in MOVES:
                _round(graph, value)
            elif value.dtype in _HALF:
                _retype(value, F32)  # what it moves is rounded


def _round(graph: ir.Graph, value: ir.Value) -> None:
    """Let a value of 16 bits be computed in fp32, and read after it was rounded."""
    if (narrow := value.dtype) not in _HALF:
        return
    name = value.name
    at = [index for index, output in enumerate(graph.outputs) if output is value]
    if at:
        value.name = f"{name}.wide"
    half, producer = value, value.producer()
    if producer is None or producer.op_type not in ("Cast", "ConstantOfShape"):  # which round by themselves
        _retype(value, F32)
        half = cast(graph, value, narrow, f"{name}.half")
    new = cast(graph, half, F32, name if at else f"{name}.rounded")
    _replace(value, new, but=half.producer())
    for index in at:
        graph.outputs[index] = new


def _replace(value: ir.Value, new: ir.Value, but: ir.Node | None = None) -> None:
    for node, index in list(value.uses()):
        if node is not new.producer() and node is not but:
            node.replace_input_with(index, new)


def _retype(value: ir.Value, dtype: ir.DataType) -> None:
    value.type = ir.TensorType(dtype)


def _narrowed(tensor: ir.TensorProtocol, format: Format, name: str) -> ir.LazyTensor:
    """A weight in the format, made only when it is written."""

    def make() -> ir.Tensor:
        made = ir.tensor(format.rounded(tensor.numpy()))
        release(tensor)
        return made

    return ir.LazyTensor(make, dtype=format.type, shape=tensor.shape, name=name)


def release(tensor: ir.TensorProtocol) -> None:
    """Let go of what was read of a weight that lies in a file."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
