"""Recipes of one's own: a Python file's function that returns one, and what is verified where it says nothing else."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError

_NAMED = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


class Function(NamedTuple):
    """A function of a Python file."""

    file: Path
    name: str

    def recipe(self) -> Recipe:
        """Run the file, then the function. Raises `ExportError` that says where they fail."""
        with _importable(self.file.parent):
            module = self._module()
            if not callable(function := getattr(module, self.name, None)):
                raise ExportError(f"{self.file}: has no function {self.name!r}")
            try:
                found = function()
            except Exception as error:
                raise self._failed(error) from error
        if not isinstance(found, Recipe):
            raise ExportError(f"{self.file}: {self.name}() gives {type(found).__name__}, wanted a mmrt.export.Recipe")
        return found

    def _module(self) -> Any:
        if not self.file.is_file():
            raise ExportError(f"{self.file}: no such file")
        spec = importlib.util.spec_from_file_location(self.file.stem, self.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise self._failed(error) from error
        return module

    def _failed(self, error: Exception) -> ExportError:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.file)
        ]
        where = f"{self.file}, line {lines[-1]}" if lines else str(self.file)
        return ExportError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}")


def function(named: str) -> Function | None:
    """The function that FILE.py:NAME names, if that is what it is."""
    match = _NAMED.fullmatch(named)
    return Function(Path(match[1]).absolute(), match[2]) if match else None


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """As for a script: what lies beside it can be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def check(graphs: Mapping[str, Graph]) -> None:
    """That graphs can be called as the recipe says, and give the same twice. Raises `ExportError` naming the graph."""
    for name, graph in graphs.items():
        training = [part or "it" for part, module in graph.module.named_modules() if module.training]
        if training:
            raise ExportError(f"{name}: {training[0]} is in training mode: call eval() on the module first")
        parameters = inspect.signature(graph.module.forward).parameters
        needed = [each.name for each in parameters.values() if each.default is each.empty]
        known = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        if strange := [key for key in graph.inputs if key not in parameters and not known]:
            raise ExportError(f"{name}: forward takes {', '.join(parameters)}, the recipe gives {strange[0]!r}")
        if missing := [key for key in needed if key not in graph.inputs and parameters[key].kind.name != "VAR_KEYWORD"]:
            raise ExportError(f"{name}: forward needs {missing[0]!r}, of which the recipe gives no example")
        first, second = outputs(name, graph), outputs(name, graph)
        for key, array in first.items():
            if not np.array_equal(array, second[key], equal_nan=True):
                raise ExportError(f"{name}: {key!r} is another in a second call with the same inputs")


def outputs(name: str, graph: Graph) -> dict[str, AnyArray]:
    """What the module itself gives for the example inputs. Raises `ExportError` where the recipe says otherwise."""
    try:
        with torch.no_grad():
            found = graph.module(**graph.inputs)
    except Exception as error:
        raise ExportError(
            f"{name}: fails with its example inputs: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    found = found if isinstance(found, tuple | list) else (found,)
    if len(found) != len(graph.outputs) or not all(isinstance(each, torch.Tensor) for each in found):
        kinds = ", ".join(type(each).__name__ for each in found)
        wanted = ", ".join(graph.outputs)
        raise ExportError(f"{name}: forward gives {kinds}, wanted {len(graph.outputs)} tensors: {wanted}")
    return {key: each.numpy() for key, each in zip(graph.outputs, found, strict=True)}


def golden(graphs: Mapping[str, Graph]) -> Golden:
    """What the modules themselves give for their example inputs, graph by graph."""
    arrays: dict[str, AnyArray] = {}
    for name, graph in graphs.items():
        arrays |= {f"graph/{name}/0/in/{key}": tensor.numpy() for key, tensor in graph.inputs.items()}
        arrays |= {f"graph/{name}/0/out/{key}": array for key, array in outputs(name, graph).items()}
    return Golden(f"the modules themselves, torch {torch.__version__}, fp32 on cpu", arrays, ())
