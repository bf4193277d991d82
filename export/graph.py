"""A torch module becomes an ONNX file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmrt.export.attention import ATTENTION, leave_heads_in_place
from mmrt.export.forwards import forwards
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Graph
from mmrt.export.recurrent import RECURRENT
from mmrt.runtime import manifest
from mmrt.runtime.errors import ExportError

EMBEDDED = (
    64 << 20
)  # bytes of weights up to which they are in the ONNX file itself; more lie beside it in NAME.onnx.data
_DTYPES = {
    "FLOAT": "float32",
    "FLOAT16": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def write_onnx(name: str, graph: Graph, path: Path, embedded: int = EMBEDDED) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the graph to `path`; the `manifest.Array`s of its inputs and outputs.

    Weights of more than `embedded` bytes go beside it. Raises `ExportError` naming the graph, and what torch cannot
    express or what did not come out as the recipe says.
    """
    graph.module.eval().requires_grad_(False)
    try:
        with quiet():
            program = _to_onnx(graph)
            model = program.model
    except OSError:
        raise
    except Exception as error:  # torch raises of everything
        raise ExportError(f"{name}: torch cannot export this graph: {_first_line(error)}{_advice(error)}") from error
    _forget_traces(model)
    _cast_pixels_at_borders(model)
    leave_heads_in_place(model)
    _name_dimensions(model, graph.free)
    inputs = {value.name: _array(name, value, graph.free) for value in model.graph.inputs}
    outputs = {value.name: _array(name, value, graph.free) for value in model.graph.outputs}
    _compare_inputs(name, graph.inputs, inputs)
    if tuple(outputs) != graph.outputs:
        raise ExportError(f"{name}: outputs came out as {', '.join(outputs)}, wanted {', '.join(graph.outputs)}")
    size = sum(tensor.const_value.nbytes for tensor in model.graph.initializers.values())
    with quiet():
        program.save(str(path), external_data=size > embedded)
    return inputs, outputs


class _OfArrays(torch.nn.Module):  # type: ignore[misc]
    """A module as a function of one dict, so that it may take any keywords."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, arrays: dict[str, Any]) -> Any:
        return self.module(**arrays)


def _to_onnx(graph: Graph) -> Any:
    arrays = {name: tensor.clone() for name, tensor in graph.inputs.items()}  # one tensor twice would be one input
    free = {name: dict.fromkeys(graph.free.get(name, {}), torch.export.Dim.DYNAMIC) or None for name in arrays}
    with torch.no_grad(), forwards(graph.module, RECURRENT | ATTENTION):
        program = torch.export.export(_OfArrays(graph.module), (arrays,), dynamic_shapes=(free,), strict=False)
    _forget_checks(program.graph)
    return torch.onnx.export(
        program,
        (arrays,),
        dynamo=True,
        opset_version=graph.opset,
        input_names=list(arrays),
        output_names=list(graph.outputs),
        verbose=False,
    )


def _forget_checks(graph: Any) -> None:
    """Drop what a module asserts of its tensors (`torch._check`), which ONNX cannot express."""
    for node in reversed(list(graph.nodes)):
        if str(node.target).startswith("aten._assert_"):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _forget_traces(model: Any) -> None:
    """Drop what torch notes of each node: stack traces with this machine's paths, larger than small models."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _cast_pixels_at_borders(model: Any) -> None:
    """Let a Transpose of uint8 and a Cast next to it change places, which changes no number: TensorRT has uint8 at
    borders alone, with a Cast beside them."""
    for first in model.graph:
        middle = first.outputs[0]
        if len(middle.uses()) != 1 or middle.is_graph_output() or middle.dtype is None or middle.dtype.name != "UINT8":
            continue
        [(second, _)] = middle.uses()
        if {first.op_type, second.op_type} == {"Transpose", "Cast"}:
            casts_now = first.op_type == "Transpose"
            middle.dtype = second.outputs[0].dtype if casts_now else first.inputs[0].dtype
            middle.shape = first.inputs[0].shape if casts_now else second.outputs[0].shape
            first.op_type, second.op_type = second.op_type, first.op_type
            attributes = dict(first.attributes), dict(second.attributes)
            for node, new in zip((second, first), attributes, strict=True):
                node.attributes.clear()
                node.attributes.update(new)


def _name_dimensions(model: Any, free: Mapping[str, Mapping[int, str]]) -> None:
    """Give torch's symbols (s48) the recipe's names everywhere, and the borders exactly those."""
    names = {
        str(value.shape[axis].value): name
        for value in model.graph.inputs
        for axis, name in free.get(value.name, {}).items()
        if not isinstance(value.shape[axis], int)
    }
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int) and dim.value is not None:
                value.shape[axis] = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), str(dim.value))
    for value in model.graph.outputs:
        for axis, name in free.get(value.name, {}).items():
            if not isinstance(value.shape[axis], int):
                value.shape[axis] = name


def _array(graph: str, value: Any, free: Mapping[str, Mapping[int, str]]) -> manifest.Array:
    names = free.get(value.name, {})
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int) and axis in names:
            raise ExportError(
                f"{graph}: dimension {axis} of {value.name!r} was fixed to {dim}, wanted free {names[axis]!r}: "
                "the code makes it of numbers, not of its inputs' shapes"
            )
        if not isinstance(dim, int) and axis not in names:
            raise ExportError(
                f"{graph}: dimension {axis} of {value.name!r} is free ({dim}), and `free` does not name it: name it"
            )
    dtype = _DTYPES.get(value.dtype.name)
    if dtype is None:
        raise ExportError(f"{graph}: {value.name!r} is {value.dtype.name}, supported are {', '.join(_DTYPES)}")
    shape = tuple(names.get(axis, dim) for axis, dim in enumerate(value.shape))
    return manifest.Array(dtype=dtype, shape=shape)  # type: ignore[arg-type]


def _compare_inputs(graph: str, wanted: Mapping[str, torch.Tensor], found: Mapping[str, manifest.Array]) -> None:
    if list(found) != list(wanted):
        raise ExportError(f"{graph}: inputs came out as {', '.join(found)}, wanted {', '.join(wanted)}")
    for name, tensor in wanted.items():
        if str(tensor.dtype) != f"torch.{found[name].dtype}":
            raise ExportError(f"{graph}: input {name!r} came out as {found[name].dtype}, wanted {tensor.dtype}")


_ADVICE = {  # what torch says: what it means
    r"data-dependent": "an `if` or a loop looks at what a tensor holds: use torch.where or a fixed number of rounds",
    r"\.numpy\(\) is not supported": "NumPy cannot be exported: compute with torch",
    r"Constraints violated \(L\['arrays'\]\['(\w+)'\]\.size\(\)\[(\d+)\]": (
        r"the code fixes dimension \2 of '\1', which is free: write \1.shape[\2] (or -1) and not its number"
    ),
    r"Error when translating node .*target=torch\.ops\.([\w.]+)\]": (
        r"ONNX has no operator for torch's \1: compute it with others"
    ),
}


def _advice(error: Exception) -> str:
    text = str(error.__cause__ or error)
    found = ((re.search(pattern, text), advice) for pattern, advice in _ADVICE.items())
    return "".join(f"; {match.expand(advice)}" for match, advice in found if match)


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"
