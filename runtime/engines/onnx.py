"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnxruntime as ort

from mmrt.runtime import manifest
from mmrt.runtime.arrays import AnyArray, mismatch
from mmrt.runtime.devices import Array, Device, cpu
from mmrt.runtime.engines import Call
from mmrt.runtime.errors import BundleError, EngineError, RequestError

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxEngine:
    """A graph in an ONNX Runtime session; arrays are NumPy arrays."""

    sizes: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        graph: str,
        spec: manifest.Graph,
        file: Path,
        threads: int = 0,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        without: Sequence[str] = (),
    ) -> None:
        """`threads` of 0 leaves their number to ONNX Runtime; `without` are optimizers of its own that it does without.

        Raises `EngineError` or `BundleError`.
        """
        self.graph = graph
        self.inputs: Mapping[str, manifest.Array] = spec.inputs
        self.outputs: Mapping[str, manifest.Array] = spec.outputs
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what it would log as errors, its exceptions say
        try:
            self._session = ort.InferenceSession(
                self._model(file, options), options, providers=list(providers), disabled_optimizers=[*without]
            )
        except Exception as error:  # its exceptions share no base but this
            raise EngineError(f"{file}: ONNX Runtime {ort.__version__} cannot load it: {_line(error)}") from None
        self._compare(file, "input", self._session.get_inputs(), spec.inputs)
        self._compare(file, "output", self._session.get_outputs(), spec.outputs)

    def run(self, arrays: Mapping[str, Array], device: Device = cpu) -> dict[str, Array]:
        """See `Engine.run`."""
        sizes = self._check(arrays)
        try:
            outputs = self._session.run(list(self.outputs), {name: arrays[name] for name in self.inputs})
        except Exception as error:
            raise self._failed(error) from None
        named = dict(zip(self.outputs, outputs, strict=True))
        self._check_outputs(named, sizes)
        return named

    def bind(
        self,
        arrays: Mapping[str, Array],
        into: Mapping[str, Array] = MappingProxyType({}),
        device: Device = cpu,
        last: Call | None = None,
    ) -> tuple[Call, dict[str, Array]]:
        """See `Engine.bind`."""
        sizes = self._check(arrays)
        bound = last if isinstance(last, _Bound) else _Bound(self._session, self._failed)
        outputs = {
            name: into[name] if name in into else bound.output(name, spec, sizes) for name, spec in self.outputs.items()
        }
        self._check_outputs(outputs, sizes)
        bound.place({name: arrays[name] for name in self.inputs}, outputs)
        return bound, outputs

    def _model(self, file: Path, options: ort.SessionOptions) -> str | bytes:
        """The file's name, or its bytes as they are loaded."""
        return str(file)

    def _check(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """The sizes of the free dimensions."""
        sizes: dict[str, int] = {}
        if problem := mismatch(self.graph, "input", self.inputs, arrays, sizes):
            raise RequestError(problem)
        return sizes

    def _check_outputs(self, outputs: Mapping[str, Array], sizes: dict[str, int]) -> None:
        if problem := mismatch(self.graph, "output", self.outputs, outputs, sizes):
            raise BundleError(f"{problem}, as the manifest says")

    def _failed(self, error: Exception) -> EngineError:
        return EngineError(f"{self.graph}: ONNX Runtime {ort.__version__} failed: {_line(error)}")

    def _compare(self, file: Path, side: str, found: list[ort.NodeArg], wanted: Mapping[str, manifest.Array]) -> None:
        """Compare the names, dtypes and ranks in the file with the manifest's."""
        names = {node.name: node for node in found}
        if names.keys() != wanted.keys():
            raise BundleError(f"{file}: {side}s are {sorted(names)}, the manifest says {sorted(wanted)}")
        for name, spec in wanted.items():
            node = names[name]
            sizes_fit = len(node.shape) == len(spec.shape) and all(
                not isinstance(size, int) or size == dim for size, dim in zip(node.shape, spec.shape, strict=True)
            )
            if _DTYPES.get(node.type) != spec.dtype or not sizes_fit:
                raise BundleError(f"{file}: {side} {name!r} is {node.type}{node.shape}, the manifest says {spec}")


class _Bound:
    """A call of a session, and what is bound for it: that alone which changes is bound again."""

    capturable = False

    def __init__(self, session: ort.InferenceSession, failed: Callable[[Exception], EngineError]) -> None:
        self._session, self._binding, self._failed = session, session.io_binding(), failed
        self._inputs: dict[str, AnyArray] = {}
        self._outputs: dict[str, AnyArray] = {}

    def output(self, name: str, spec: manifest.Array, sizes: Mapping[str, int]) -> AnyArray:
        """The array that is bound so far, if it has the shape, or a new one."""
        shape, bound = shaped(spec, sizes), self._outputs.get(name)
        return bound if bound is not None and bound.shape == shape else cpu.empty(shape, spec.dtype)

    def place(self, inputs: Mapping[str, AnyArray], outputs: Mapping[str, AnyArray]) -> None:
        """Say where all arrays lie. One on both sides is one value: that is what "in place" means to ONNX Runtime."""
        values: dict[int, ort.OrtValue] = {}
        for bind, bound, arrays in (
            (self._binding.bind_ortvalue_input, self._inputs, inputs),
            (self._binding.bind_ortvalue_output, self._outputs, outputs),
        ):
            for name, array in arrays.items():
                if bound.get(name) is not array:
                    if id(array) not in values:
                        values[id(array)] = ort.OrtValue.ortvalue_from_numpy(array)
                    bind(name, values[id(array)])
                    bound[name] = array

    def __call__(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise self._failed(error) from None


def shaped(spec: manifest.Array, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array whose free dimensions have these sizes."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
