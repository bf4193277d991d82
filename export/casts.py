"""Types and casts: an ONNX graph in fp16, once it is known which of its nodes stay in fp32.

Converters that there are (onnxruntime's `float16`, onnxconverter-common) keep nodes by name too, but know neither what
lives between graphs in fp16 nor the operators of opsets 23 and 24, cast around every node that is kept, and hold all
weights in memory several times.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from mmrt.runtime.errors import ExportError

F32, F16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
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
        raise ExportError(f"{path}: has functions of its own, which fp16 is not made of")
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


def can_be_half(node: ir.Node, version: int) -> bool:
    """Whether ONNX has the operator in fp16 wherever this node has float32."""
    if node.op_type in _OWN_DTYPE or any(True for _ in nested(node)):
        return False
    sides = ((node.inputs, "inputs"), (node.outputs, "outputs"))
    return all(
        takes_half(node, index, version, side) is not None
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


def takes_half(node: ir.Node, index: int, version: int, side: str = "inputs") -> bool | None:
    """Whether an input (output) can be fp16; False where it is float32 always, None where ONNX does not know fp16."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return None
    formals = getattr(schema, side)
    formal = formals[min(index, len(formals) - 1)]
    if "tensor(float16)" in formal.types:
        return True
    return False if formal.type_str == "tensor(float)" else None


def to_half(model: ir.Model, wide: Collection[str], borders: Collection[str]) -> None:
    """Put all but the nodes named in `wide` into fp16, and those of the graph's inputs and outputs in `borders`."""
    _Half(model, wide, borders).all()


class _Half:
    def __init__(self, model: ir.Model, wide: Collection[str], borders: Collection[str]) -> None:
        self.graph, self.wide, self.borders = model.graph, wide, borders
        self.version = model.graph.opset_imports[""]
        self.nodes = list(model.graph)
        values = [*self.graph.inputs, *self.graph.initializers.values(), *(v for n in self.nodes for v in n.outputs)]
        self.floats = {value for value in values if is_float(value)}
        self.casts: dict[ir.Value, ir.Value] = {}

    def all(self) -> None:
        for value in self.graph.inputs:
            if value in self.floats and value.name in self.borders:
                _retype(value, F16)
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
                _retype(value, F16)
        if node.op_type == "Cast" and node.outputs[0] in self.floats:
            node.attributes["to"] = ir.AttrInt64("to", F16)
        if node.op_type == "ConstantOfShape" and node.outputs[0] in self.floats:
            fill = (
                node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
            )
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill.astype(np.float16)))
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
        half = node.name not in self.wide and takes_half(user, index, self.version)
        return F16 if half else F32

    def _weights(self) -> None:
        """Weights take the type of their users; where these differ, there are two of it."""
        users: dict[ir.Value, dict[ir.DataType, list[tuple[ir.Node, int]]]] = {}
        for node in self.nodes:
            for user, index, value in self._uses(node):
                if constant(value):
                    wanted = self._wanted(node, user, index, value)
                    users.setdefault(value, {}).setdefault(wanted, []).append((user, index))
        for value, wanted in users.items():
            if F16 not in wanted:
                continue
            half = ir.Value(name=f"{value.name}.fp16", shape=value.shape, type=ir.TensorType(F16))
            half.const_value = _narrowed(value.const_value, half.name)
            self.graph.register_initializer(half)
            for user, index in wanted[F16]:
                user.replace_input_with(index, half)
            if len(wanted) == 1 and not value.is_graph_output():
                del self.graph.initializers[value.name]

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        if value not in self.casts:
            self.casts[value] = cast(self.graph, value, to, f"{value.name}.{_SUFFIX[to]}")
        return self.casts[value]

    def _outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            wanted = F16 if value.name in self.borders else F32
            if value not in self.floats or value.dtype == wanted:
                continue
            name, value.name = value.name, f"{value.name}.{_SUFFIX[value.dtype]}"
            self.graph.outputs[index] = cast(self.graph, value, wanted, name)


_SUFFIX = {F16: "fp16", F32: "fp32"}


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
    """A graph in fp16 becomes one in fp32 of which every result is rounded to fp16.

    That is what it means to run it in fp16: ONNX Runtime's CPU, which has few operators in fp16, leaves out the
    rounding between those that it runs in fp32. The weights stay where and what they are.
    """
    graph = model.graph
    nodes = list(graph)
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.dtype == F16 and value.uses():
            _replace(value, cast(graph, value, F32, f"{value.name}.wide"))
    for node in nodes:
        for value in node.outputs:
            if value.dtype != F16:
                continue
            if node.op_type in ("Cast", "ConstantOfShape"):
                _replace(value, cast(graph, value, F32, f"{value.name}.wide"))
                continue
            _retype(value, F32)
            at = [index for index, output in enumerate(graph.outputs) if output is value]
            if at:
                name, value.name = value.name, f"{value.name}.wide"
                graph.outputs[at[0]] = half = cast(graph, value, F16, name)
            elif node.op_type in MOVES:
                continue
            else:
                half = cast(graph, value, F16, f"{value.name}.half")
            _replace(value, cast(graph, half, F32, f"{half.name}.rounded"), but=half.producer())


def _replace(value: ir.Value, new: ir.Value, but: ir.Node | None = None) -> None:
    for node, index in list(value.uses()):
        if node is not new.producer() and node is not but:
            node.replace_input_with(index, new)


def _retype(value: ir.Value, dtype: ir.DataType) -> None:
    value.type = ir.TensorType(dtype)


def _narrowed(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
    """A weight in fp16, made only when it is written."""

    def make() -> ir.Tensor:
        with np.errstate(over="ignore"):
            return ir.tensor(tensor.numpy().astype(np.float16))

    return ir.LazyTensor(make, dtype=F16, shape=tensor.shape, name=name)
