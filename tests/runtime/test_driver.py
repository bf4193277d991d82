"""What `devices.driver` takes of cuda-core and cuda-bindings is there; that it works shows on a GPU (test_cuda)."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from mmrt.runtime.devices import driver
from mmrt.runtime.errors import EngineError

core = pytest.importorskip("cuda.core")
bindings = pytest.importorskip("cuda.bindings.driver")


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("Device", "compute_capability create_stream name set_current"),
        ("DeviceMemoryResource", "allocate"),
        ("LegacyPinnedMemoryResource", "allocate"),
        ("Buffer", "from_handle handle"),
        ("Stream", "create_graph_builder from_handle handle record sync wait"),
        ("Event", "is_done sync __sub__"),
        ("ObjectCode", "from_fatbin get_kernel"),
        ("graph.GraphBuilder", "begin_building complete end_building"),
        ("graph.Graph", "launch upload"),
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
