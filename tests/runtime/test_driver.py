"""What `devices.driver` takes of cuda-core and cuda-bindings is there; that it works shows on a GPU (test_cuda)."""

from __future__ import annotations

import ctypes
import functools
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmrt.runtime.devices import driver
from mmrt.runtime.errors import EngineError

core = pytest.importorskip("cuda.core")
bindings = pytest.importorskip("cuda.bindings.driver")


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("Device", "compute_capability context create_stream memory_resource name properties set_current"),
        ("_device.DeviceProperties", "integrated"),
        ("DeviceMemoryResource", "allocate handle"),
        ("LegacyPinnedMemoryResource", "allocate"),
        ("Buffer", "from_handle handle"),
        ("Stream", "from_handle handle record sync wait"),
        ("Event", "is_done sync __sub__"),
        ("ObjectCode", "from_fatbin get_kernel"),
        ("utils.StridedMemoryView", "__dlpack__ device_id from_buffer from_dlpack ptr shape strides"),
    ],
)
def test_cuda_core_has_what_is_asked_of_it(owner: str, names: str) -> None:
    found = core
    for name in owner.split("."):
        found = getattr(found, name)
    assert not [name for name in names.split() if not hasattr(found, name)]


def test_what_is_given_to_cuda_has_its_form() -> None:
    copy = bindings.CUDA_MEMCPY2D()
    copy.dstMemoryType = copy.srcMemoryType = bindings.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.dstDevice, copy.dstPitch = 0x7F0000001000, 64
    assert (int(copy.dstDevice), copy.dstPitch) == (0x7F0000001000, 64)
    assert core.LaunchConfig(grid=(1, 2, 3), block=(256, 1, 1), shmem_size=16).grid == (1, 2, 3)
    core._kernel_arg_handler.ParamHolder([0x7F0000001000, np.int32(3)])  # refuses what it does not know
    assert core.EventOptions(timing_enabled=True).timing_enabled


def library(version: int, count: int, code: int = 0) -> SimpleNamespace:
    """libcuda, as far as it is asked."""

    def give(value: int) -> object:
        def call(place: object) -> int:
            ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = value  # type: ignore[arg-type]
            return 0

        return call

    return SimpleNamespace(cuInit=lambda _: code, cuDriverGetVersion=give(version), cuDeviceGetCount=give(count))


@pytest.mark.parametrize(
    ("found", "index", "says"),
    [
        (None, 0, "no NVIDIA driver is installed"),
        (library(13000, 0, 100), 0, r"finds no GPU that it can use \(cuInit gives 100\)"),
        (library(13000, 1), 1, "there is no GPU 1: the NVIDIA driver has 1, counted from 0"),
        (
            library(11040, 1),
            0,
            r"the NVIDIA driver is for CUDA 11.4, cuda-bindings [0-9.]+ need one for 1[23] or later",
        ),
    ],
)
def test_why_a_gpu_cannot_be_used(
    found: SimpleNamespace | None, index: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_library", lambda: found)
    with pytest.raises(EngineError, match=says):
        driver.Driver(index)


# ---------------------------------------------------------------- cuda-core over no GPU


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs, as far as they are opened; the list has one element, the number of this thread's, from 1, or 0."""
    current = [0]

    class Device:
        compute_capability = SimpleNamespace(major=8, minor=7)
        name = "a double"

        def __init__(self, index: int) -> None:
            self.index = index
            self.memory_resource = None
            self.properties = SimpleNamespace(integrated=index == 1)
            self.context: set[int] = set()

        def set_current(self) -> None:
            current[0] = self.index + 1

    monkeypatch.setattr(driver, "_library", lambda: library(13000, 2))
    monkeypatch.setattr(core, "Device", Device)
    monkeypatch.setattr(bindings, "cuCtxGetCurrent", lambda: (0, current[0]))
    monkeypatch.setattr(bindings, "cuMemGetInfo", lambda: (0, current[0] << 20, 8 << 30))
    return current


def test_a_gpu_is_current_when_it_is_asked(gpus: list[int]) -> None:
    first, second = driver.Driver(0), driver.Driver(1)
    for gpu in (first, second, first):
        gpu.memory()
        assert gpus == [gpu.index + 1]
    gpus[0] = 2  # by another library
    assert first.memory() == (1 << 20, 8 << 30)


def test_a_context_stays_when_its_thread_ends(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    of_thread = functools.cache(core.Device)
    monkeypatch.setattr(core, "Device", of_thread)
    opened = driver.Driver(0)
    context = weakref.ref(of_thread(0).context)
    of_thread.cache_clear()
    gc.collect()
    assert context() is not None
    del opened
    gc.collect()
    assert context() is None


def test_memory_that_is_the_hosts_too(gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_MEMORY", tmp_path / "meminfo")
    assert driver.Driver(1).memory() == (2 << 20, 8 << 30)
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 2048 kB\nMemAvailable: 4194304 kB\n")
    assert driver.Driver(1).memory() == (4 << 30, 8 << 30)
    assert driver.Driver(0).memory() == (1 << 20, 8 << 30)


def test_what_cuda_core_raises_is_an_engine_error(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = driver.Driver(0)

    def refuse(*_: Any, **__: Any) -> None:
        raise core._utils.cuda_utils.CUDAError("CUDA_ERROR_DEVICE_UNAVAILABLE: busy")

    stream = SimpleNamespace(sync=refuse, record=refuse, wait=refuse)
    monkeypatch.setattr(core, "launch", refuse)
    for work in (
        lambda: opened.record(stream),
        lambda: opened.wait(stream, None),
        lambda: opened.sync(stream),
        lambda: opened.launch(stream, None, (1, 1, 1), (32, 1, 1), 0, ()),
    ):
        with pytest.raises(EngineError, match="a double: CUDA_ERROR_DEVICE_UNAVAILABLE: busy"):
            work()
    monkeypatch.setattr(core.Device, "set_current", refuse)
    with pytest.raises(EngineError, match="the GPU: CUDA_ERROR_DEVICE_UNAVAILABLE: busy"):
        driver.Driver(1)


@pytest.mark.parametrize("fails", ["", "cuStreamEndCapture", "cuGraphInstantiate", "work"])
def test_what_is_captured_is_let_go(fails: str, gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that failed has no graph, and destroying one then ends the process."""
    asked: list[tuple[object, ...]] = []

    def give(name: str, *values: object) -> None:
        def call(*arguments: object) -> tuple[object, ...]:
            asked.append((name, *arguments))
            return (901, *(None for _ in values)) if name == fails else (0, *values)

        assert callable(getattr(bindings, name))
        monkeypatch.setattr(bindings, name, call)

    give("cuStreamBeginCapture")
    give("cuStreamEndCapture", "graph")
    give("cuGraphInstantiate", "executable")
    for name in ("cuGraphUpload", "cuGraphLaunch", "cuGraphDestroy", "cuGraphExecDestroy"):
        give(name)
    monkeypatch.setattr(bindings, "cuGetErrorString", lambda code: (0, b"invalid"))
    gpu, stream = driver.Driver(0), SimpleNamespace(handle="stream")

    def work() -> None:
        if fails == "work":
            raise EngineError("out of luck")

    if fails:
        with pytest.raises(EngineError, match=r"a CUDA graph cannot be captured: .*(invalid|out of luck)"):
            gpu.capture(stream, work)
    else:
        replay = gpu.capture(stream, work)
        replay()
        assert ("cuGraphLaunch", "executable", "stream") in asked
        del replay
    gc.collect()
    assert ("cuStreamEndCapture", "stream") in asked
    assert (("cuGraphDestroy", "graph") in asked) == (fails != "cuStreamEndCapture")
    assert (("cuGraphExecDestroy", "executable") in asked) == (not fails)


@pytest.mark.parametrize(
    ("strides", "like"),
    [(None, True), ((12, 4, 1), True), ((1, 4, 1), True), ((12, 1, 3), False), ((24, 8, 1), False)],
)
def test_strides_of_dimensions_of_size_1_mean_nothing(strides: tuple[int, ...] | None, like: bool) -> None:
    array = SimpleNamespace(shape=(1, 3, 4), strides=(12, 4, 1))
    assert driver._contiguous(array, strides) == like  # type: ignore[arg-type]
