"""ONNX Runtime on a GPU, by its CUDA provider.

It takes a stream for good when a session is made. So each session has one of its own: what it is asked waits for the
request's stream, and that for it, by events, and the host for neither. A call of it is not captured into a CUDA graph:
it frees what it staged in the host's memory, where a replay would read again. Its own graphs (`enable_cuda_graph`) are
left out, too: it keeps each until the session ends, and every request's arrays lie elsewhere and need another; it has
them for each thread apart, where a request may go on in another; and while it captures, CUDA refuses what other threads
ask that may not be captured, such as memory.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnxruntime as ort

from mmrt.runtime import manifest
from mmrt.runtime.devices import Array, Device, cpu
from mmrt.runtime.devices.cuda import Cuda, DeviceArray, Gpu
from mmrt.runtime.engines import Call
from mmrt.runtime.engines.onnx import OnnxEngine, shaped
from mmrt.runtime.engines.onnx_file import drop_attribute
from mmrt.runtime.errors import EngineError

_BFLOAT16 = 16  # the number that ONNX gives it
_LOADING = threading.Lock()  # graphs are loaded at the same time, and `_preload` turns the process's output away


class CudaOnnxEngine(OnnxEngine):
    """A graph in an ONNX Runtime session on a GPU; arrays are `DeviceArray`s."""

    def __init__(self, graph: str, spec: manifest.Graph, file: Path, place: Gpu) -> None:
        """Raises `EngineError` or `BundleError`."""
        self._driver = place.driver
        stream = place.driver.stream()
        self._memory, providers = place.driver.providers(stream)
        self._lock = threading.Lock()
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if wanted not in ort.get_available_providers():
            raise EngineError(
                f"ONNX Runtime {ort.__version__} is here without {wanted}: pip uninstall onnxruntime, then "
                "pip install 'mmrt[cuda]'"
            )
        with _LOADING:
            missing = _preload()
        ort.set_default_logger_severity(4)  # why a provider cannot be loaded is said below, in one line
        super().__init__(graph, spec, file, providers=providers)
        if self._session.get_providers()[0] != wanted:  # it goes on without one that it cannot load
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load its {wanted}: CUDA's libraries or cuDNN are missing or of "
                f"another version{missing}: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        self._stream = stream  # behind the session, which goes before it when the engine does
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, arrays: Mapping[str, Array], device: Device = cpu) -> dict[str, Array]:
        """See `Engine.run`. The host waits where an output's shape does not follow from the inputs' alone."""
        sizes = self._check(arrays)
        unknown = [name for name, spec in self.outputs.items() if any(_free(dim, sizes) for dim in spec.shape)]
        if not unknown:
            call, outputs = self.bind(arrays, device=device)
            call()
            return outputs
        assert isinstance(device, Cuda)
        binding = self._binding(arrays, {})
        for name in self.outputs:
            binding.bind_output(name, self._memory, self._driver.index)
        found: dict[str, Array] = {}

        def copy() -> None:
            """Into arrays of the device, as ONNX Runtime takes its own back when it likes."""
            self._driver.sync(self._stream)
            for name, value in zip(self.outputs, binding.get_outputs(), strict=True):
                array = device.empty(value.shape(), self.outputs[name].dtype)
                if array.nbytes:
                    self._driver.copy(array.pointer, value.data_ptr(), array.nbytes, self._stream)
                found[name] = array
            self._driver.sync(self._stream)

        self._enqueue(binding, device, copy)
        self._check_outputs(found, sizes)
        return found

    def bind(
        self,
        arrays: Mapping[str, Array],
        into: Mapping[str, Array] = MappingProxyType({}),
        device: Device = cpu,
        last: Call | None = None,
    ) -> tuple[Call, dict[str, Array]]:
        """See `Engine.bind`."""
        assert isinstance(device, Cuda)
        sizes = self._check(arrays)
        outputs = {
            name: into[name] if name in into else device.empty(shaped(spec, sizes), spec.dtype)
            for name, spec in self.outputs.items()
        }
        self._check_outputs(outputs, sizes)
        binding = self._binding(arrays, outputs)
        held = [*(arrays[name] for name in self.inputs), *outputs.values()]
        return _Bound(partial(self._enqueue, binding, device), held), outputs

    def _model(self, file: Path, options: ort.SessionOptions) -> str | bytes:
        """Without a wish for Attention's softmax, which the provider refuses at every call: on a GPU it is in fp32."""
        whole = file.read_bytes()
        model = drop_attribute(whole, "softmax_precision")
        if model == whole:
            return str(file)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        return model

    def _binding(self, arrays: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Any:
        binding = self._session.io_binding()
        for bind, named in (
            (binding.bind_input, {name: arrays[name] for name in self.inputs}),
            (binding.bind_output, outputs),
        ):
            for name, array in named.items():
                kind = _BFLOAT16 if array.dtype.name == "bfloat16" else array.dtype.type
                bind(name, self._memory, self._driver.index, kind, list(array.shape), array.pointer)
        return binding

    def _enqueue(self, binding: Any, device: Cuda, after: Callable[[], None] = lambda: None) -> None:
        """Let the session work between what the device was asked before and what it is asked next."""

        def work() -> None:
            try:
                self._session.run_with_iobinding(binding, self._options)
            except Exception as error:
                raise self._failed(error) from None

        driver, stream = self._driver, self._stream
        with self._lock:  # a session has one stream, and so one order
            driver.wait(stream, driver.record(device.stream))
            driver.enqueue(stream, work)
            after()
            driver.wait(device.stream, driver.record(stream))


class _Bound:
    """A call of a session."""

    capturable = False

    def __init__(self, enqueue: Callable[[], None], held: list[Array]) -> None:
        """`held` are the arrays: the binding knows only where they lie."""
        self._enqueue, self._held = enqueue, held

    def __call__(self) -> None:
        self._enqueue()


def _free(dim: int | str, sizes: Mapping[str, int]) -> bool:
    return isinstance(dim, str) and dim not in sizes


@cache
def _preload() -> str:
    """Let ONNX Runtime find the libraries of CUDA among the installed packages; which it misses, if any."""
    if "CUDAExecutionProvider" not in ort.get_available_providers() or not hasattr(ort, "preload_dlls"):
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it misses
        ort.preload_dlls(directory="")
    failed = re.search(r"Failed to load (\S+):", said.getvalue())
    return f" ({failed[1]})" if failed else ""
