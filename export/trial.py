"""A trial of a recipe of one's own: what is wrong with it is said in seconds, before torch exports anything."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec
import numpy as np
import torch

from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.runtime import manifest as m
from mmrt.runtime import manifest_file, options
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import BundleError, ExportError
from mmrt.runtime.receipt import compare

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DTYPES = get_args(m.Dtype)


def run(recipe: Recipe) -> Golden:
    """Call each graph with its example inputs: what the modules themselves give.

    Raises `ExportError` that says which graph, what is wrong and what to do.
    """
    arrays: dict[str, AnyArray] = {}
    borders: dict[str, m.Graph] = {}
    for name, graph in recipe.graphs.items():
        made = _run_graph(name, graph)
        arrays |= {f"graph/{name}/0/in/{key}": tensor.detach().numpy() for key, tensor in graph.inputs.items()}
        arrays |= {f"graph/{name}/0/out/{key}": tensor.numpy() for key, tensor in made.items()}
        borders[name] = _border(name, graph, made)
    _check_program(recipe, borders)
    return Golden(f"the modules themselves, torch {torch.__version__}, fp32 on cpu", arrays, ())


def _run_graph(name: str, graph: Graph) -> dict[str, torch.Tensor]:
    """Its outputs, after all that can be seen to be wrong with it was looked for."""
    _check_kinds(name, graph)
    _check_names(name, graph)
    check_module(name, graph.module)
    _check_signature(name, graph)
    for key, tensor in graph.inputs.items():
        _check_array(name, key, tensor, graph)
    first, second = _call(name, graph, graph.inputs), _call(name, graph, graph.inputs)
    for key, tensor in first.items():
        _check_array(name, key, tensor, graph)
        if not np.array_equal(tensor.numpy(), second[key].numpy(), equal_nan=True):
            raise ExportError(
                f"{name}: {key!r} is another in a second call with the same inputs: let noise be an input "
                "(Once.draws), and keep nothing from call to call"
            )
    _check_sizes(name, graph, first)
    _check_rows(name, graph, first)
    return first


# ---------------------------------------------------------------- what the recipe says


def _check_kinds(name: str, graph: Graph) -> None:
    if not isinstance(graph, Graph):
        raise ExportError(f"{name}: is {_kind(graph)}, wanted a mmrt.export.Graph")
    if not isinstance(graph.module, torch.nn.Module):
        raise ExportError(f"{name}: module is {_kind(graph.module)}, wanted a torch.nn.Module")
    if not isinstance(graph.outputs, tuple) or not graph.outputs:
        raise ExportError(f"{name}: outputs is {graph.outputs!r}, wanted a tuple of names, such as ('pixels',)")
    if not isinstance(graph.inputs, Mapping) or not graph.inputs:
        raise ExportError(f"{name}: inputs is {graph.inputs!r}, wanted example tensors by their names")
    for key, tensor in graph.inputs.items():
        if not isinstance(tensor, torch.Tensor):
            raise ExportError(f"{name}: the example of {key!r} is {_kind(tensor)}, wanted a torch.Tensor")


def _check_names(name: str, graph: Graph) -> None:
    arrays = [*graph.inputs, *graph.outputs]
    for each in (name, *arrays, *(dim for axes in graph.free.values() for dim in axes.values())):
        if not (isinstance(each, str) and _NAME.fullmatch(each)):
            raise ExportError(f"{name}: the name {each!r} is not of a-z, 0-9 and _, beginning with a letter")
    if twice := sorted({each for each in arrays if arrays.count(each) > 1}):
        raise ExportError(f"{name}: {twice[0]!r} is named twice: inputs and outputs have names of their own")
    if strange := sorted(graph.free.keys() - set(arrays)):
        raise ExportError(f"{name}: `free` names {strange[0]!r}, which is no input or output of it")


def check_module(name: str, module: torch.nn.Module) -> None:
    """That it is in eval mode, on the CPU and in float32. Raises `ExportError`."""
    if training := [part or "it" for part, each in module.named_modules() if each.training]:
        raise ExportError(f"{name}: {training[0]} is in training mode: call eval() on the module first")
    for part, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu":
            raise ExportError(f"{name}: {part} is on the device {tensor.device}: call cpu() on the module first")
    for part, tensor in module.named_parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(f"{name}: {part} is {_dtype(tensor)}, wanted float32: call float() on the module first")


def _check_signature(name: str, graph: Graph) -> None:
    parameters = inspect.signature(graph.module.forward).parameters
    kinds = {each.kind for each in parameters.values()}
    takes = ", ".join(parameters) or "nothing"
    any_name = inspect.Parameter.VAR_KEYWORD in kinds
    named = {
        key
        for key, each in parameters.items()
        if each.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    if strange := [key for key in graph.inputs if key not in named and not any_name]:
        raise ExportError(f"{name}: forward takes {takes}, the recipe gives {strange[0]!r}: name them alike")
    if missing := [key for key in named - graph.inputs.keys() if parameters[key].default is inspect.Parameter.empty]:
        raise ExportError(f"{name}: forward needs {missing[0]!r}, of which the recipe gives no example")


def _check_array(name: str, key: str, tensor: torch.Tensor, graph: Graph) -> None:
    axes = graph.free.get(key, {})
    if tensor.device.type != "cpu":
        raise ExportError(f"{name}: {key!r} is on the device {tensor.device}, wanted cpu")
    if tensor.layout != torch.strided:
        raise ExportError(f"{name}: {key!r} is sparse: call to_dense()")
    if _dtype(tensor) not in _DTYPES:
        raise ExportError(f"{name}: {key!r} is {_dtype(tensor)}, wanted one of {', '.join(_DTYPES)}: convert it")
    if not tensor.ndim:
        raise ExportError(f"{name}: {key!r} is a single number, wanted one for each row: (rows,)")
    if over := [axis for axis in axes if not 0 <= axis < tensor.ndim]:
        raise ExportError(f"{name}: `free` names dimension {over[0]} of {key!r}, which has {tensor.ndim}")
    if 0 not in axes:
        raise ExportError(f"{name}: `free` does not name dimension 0 of {key!r}: it is that of rows, as many as come")


# ---------------------------------------------------------------- what the module does


def _call(name: str, graph: Graph, examples: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    given = {key: tensor.detach().clone() for key, tensor in examples.items()}
    try:
        with torch.no_grad():
            found = graph.module(**given)
    except Exception as error:
        text = " ".join(str(error).split())
        raise ExportError(f"{name}: fails with its example inputs: {type(error).__name__}: {text}") from error
    for key, tensor in examples.items():
        if not torch.equal(tensor, given[key]):
            raise ExportError(f"{name}: forward changes its input {key!r} in place: work on a copy of it")
    found = tuple(found) if isinstance(found, tuple | list) else (found,)
    if len(found) != len(graph.outputs) or not all(isinstance(each, torch.Tensor) for each in found):
        kinds, wanted = ", ".join(type(each).__name__ for each in found), ", ".join(graph.outputs)
        raise ExportError(
            f"{name}: forward gives {kinds}, wanted {len(graph.outputs)} tensors: {wanted}; give a tensor or a tuple"
        )
    return dict(zip(graph.outputs, found, strict=True))


def _check_sizes(name: str, graph: Graph, made: Mapping[str, torch.Tensor]) -> None:
    """A free dimension has one size wherever it is named, and more than one, or torch would take it for fixed."""
    sizes: dict[str, tuple[str, int]] = {}
    for key, tensor in {**graph.inputs, **made}.items():
        for axis, dim in graph.free[key].items():
            size = tensor.shape[axis]
            if key in graph.inputs and size < 2:
                raise ExportError(f"{name}: dimension {axis} of the example {key!r} is free and {size}: give 2 or more")
            other, known = sizes.setdefault(dim, (key, size))
            if size != known:
                raise ExportError(
                    f"{name}: {dim!r} is {known} in {other!r}, and {size} in {key!r} (dimension {axis}): "
                    "give other dimensions other names"
                )


def _check_rows(name: str, graph: Graph, made: Mapping[str, torch.Tensor]) -> None:
    """The first row alone gives what it gives among others: the runtime computes as many as differ."""
    try:
        alone = _call(name, graph, {key: tensor[:1] for key, tensor in graph.inputs.items()})
    except ExportError as error:
        raise ExportError(f"{name}: does not take one row alone: {str(error).removeprefix(f'{name}: ')}") from error
    for key, tensor in made.items():
        check = compare(key, alone[key].numpy(), tensor[:1].numpy(), "fp32")
        if not check.passed:
            raise ExportError(
                f"{name}: {key!r} of the first row alone is another than among the others ({check.wanted}): rows may "
                "not depend on each other, nor on how many there are"
            )


# ---------------------------------------------------------------- what the program does


def _border(name: str, graph: Graph, made: Mapping[str, torch.Tensor]) -> m.Graph:
    """The graph as the manifest will have it."""

    def array(key: str, tensor: torch.Tensor) -> m.Array:
        shape = tuple(graph.free[key].get(axis, size) for axis, size in enumerate(tensor.shape))
        return m.Array(dtype=_dtype(tensor), shape=shape)  # type: ignore[arg-type]

    return m.Graph(
        inputs={key: array(key, tensor) for key, tensor in graph.inputs.items()},
        outputs={key: array(key, tensor) for key, tensor in made.items()},
        variants=(m.Variant(engine="onnx", precision="fp32", file=f"graphs/{name}.fp32.onnx"),),
    )


def _check_program(recipe: Recipe, graphs: dict[str, m.Graph]) -> None:
    files = [*recipe.files, *(variant.file for graph in graphs.values() for variant in graph.variants)]
    try:
        draft = m.Manifest(
            format=m.FORMAT,
            task=recipe.task,
            name="draft",
            source=m.Source(family=recipe.family, checkpoint={}, versions={}),
            inputs=dict(recipe.inputs),
            outputs=dict(recipe.outputs),
            graphs=graphs,
            program=recipe.program,
            files={file: m.File(bytes=0, sha256="0" * 64) for file in files},
            similarity=recipe.similarity,
        )
        manifest_file.encode(draft)
    except (BundleError, TypeError, ValueError) as error:  # the last two: what no manifest can hold
        raise ExportError(f"the recipe makes no legal bundle: {error}") from None
    if (wrong := options.clash(recipe.inputs)) is not None:
        raise ExportError(wrong)
    used = _graphs_of(recipe.program)
    if idle := [name for name in graphs if name not in used]:
        raise ExportError(f"{idle[0]}: no stage of the program runs this graph: name it in one, or leave it out")
    for name in recipe.inputs:
        _check_read(name, recipe, graphs)


def _graphs_of(program: tuple[m.Stage, ...]) -> set[str]:
    windows = [stage.windows for stage in program if isinstance(stage, m.Autoregress) and stage.windows is not None]
    return {name for each in (*program, *windows) for name in each.graphs}


def _check_read(name: str, recipe: Recipe, graphs: Mapping[str, m.Graph]) -> None:
    """That an input changes what is made."""
    spec = recipe.inputs[name]
    if isinstance(spec, m.Size | m.Count | m.Seed):
        return
    others = [other for key, other in recipe.inputs.items() if key != name]
    named = set(_strings(msgspec.to_builtins([recipe.program, others])))
    taken = named | {key for graph in graphs.values() for key in graph.inputs}
    arrays = m.arrays_of(spec)
    if not (taken & set(arrays) if arrays else name in named):
        what = f"no graph takes {' or '.join(map(repr, arrays))}" if arrays else "nothing in the program names it"
        raise ExportError(f"the input {name!r} is read by nobody: {what}")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _strings([key, each])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
