"""The GPU's path gives what the CPU's gives: on a double of the driver, and on a GPU where there is one."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import bundles
import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from cuda_double import Double, load_captured
from emulation import COMPILER, Emulator
from onnx import TensorProto, helper, numpy_helper

from mmrt.runtime import engines, manifest, samplers, selection
from mmrt.runtime.arrays import fitted
from mmrt.runtime.devices import cpu, cuda, driver
from mmrt.runtime.engines import Backend, onnx_cuda
from mmrt.runtime.engines.onnx import OnnxEngine
from mmrt.runtime.errors import EngineError, RequestError
from mmrt.runtime.events import Done, Step
from mmrt.runtime.pipeline import Pipeline, load
from mmrt.runtime.receipt import replay
from mmrt.runtime.schedule import Schedule

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")
LIBRARY = driver._library  # before the tests are told that there is none
PICTURE = np.random.default_rng(3).integers(0, 256, (24, 32, 3)).astype(np.uint8)
PROMPT = ["a red heart", "blue car"]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def double(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Double:
    """The one GPU of this machine."""
    made = Double(emulator)
    monkeypatch.setattr(cuda, "DRIVER", lambda index: made)
    monkeypatch.setattr(cuda, "_GPUS", {})
    return made


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> cuda.Gpu:
    """The first GPU of this machine itself."""
    monkeypatch.setattr(driver, "_library", LIBRARY)
    try:
        return cuda.gpu(0)
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["onnx", "captured", pytest.param("hardware", marks=pytest.mark.gpu)])
def on_gpu(request: pytest.FixtureRequest, handmade: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The handmade bundle there, by ONNX Runtime, or by an engine whose steps are captured as CUDA graphs."""
    request.getfixturevalue("hardware" if request.param == "hardware" else "double")
    known = {"onnx": engines.ENGINES["onnx"]}
    if request.param == "captured":
        known = {"tensorrt": Backend(("cuda",), ("onnx",), load_captured), **known}
    monkeypatch.setattr(selection, "ENGINES", known)
    return load(handmade, device="cuda")


def close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose(found["latents"], wanted["latents"], rtol=1e-4, atol=1e-4)
    assert np.abs(found["pixels"].astype(int) - wanted["pixels"]).max() <= 1


@pytest.mark.parametrize("sampler", bundles.SAMPLERS)
def test_samplers(sampler: str, on_gpu: Pipeline, pipeline: Pipeline) -> None:
    request = {"prompt": PROMPT, "negative_prompt": ["", "tree"], "sampler": sampler, "steps": 5, "seed": 3}
    close(on_gpu.arrays(**request), pipeline.arrays(**request))


@pytest.mark.parametrize(
    "more",
    [
        {"guidance": 1.0},
        {"guidance": 7.5, "guidance_rescale": 0.7},
        {"image": [PICTURE, PICTURE[::-1]], "strength": 0.5},
        {"num_images": 3, "generator": "cuda", "sampler": "euler_ancestral"},
        {"size": (40, 16)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_requests(more: dict[str, Any], on_gpu: Pipeline, pipeline: Pipeline) -> None:
    request = {"prompt": PROMPT, "steps": 4, "seed": 3} | more
    close(on_gpu.arrays(**request), pipeline.arrays(**request))


# ---------------------------------------------------------------- how it goes about it


def test_a_captured_loop_asks_the_stream_for_its_graph(
    double: Double, handmade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "ENGINES", {"tensorrt": Backend(("cuda",), ("onnx",), load_captured)})
    load(handmade, device="cuda").generate("a red heart", steps=20, sampler="euler_ancestral")
    assert (double.graphs, double.replays) == (1, 19)  # the first step is done as it is


def test_the_host_waits_for_previews_only(double: Double, handmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "ENGINES", {"tensorrt": Backend(("cuda",), ("onnx",), load_captured)})
    waits = []
    for event in load(handmade, device="cuda").stream("a red heart", steps=9, sampler="euler_ancestral"):
        if isinstance(event, Step):
            waits.append(double.syncs)
            if event.number == 6:
                event.preview()
    assert [after - before for before, after in pairwise(waits)] == [0, 0, 0, 0, 0, 1, 0, 0]


def test_previews(on_gpu: Pipeline, pipeline: Pipeline) -> None:
    request = {"prompt": "a red heart", "steps": 3, "seed": 5}
    for event, wanted in zip(on_gpu.stream(**request), pipeline.stream(**request), strict=True):
        if isinstance(event, Step) and isinstance(wanted, Step):
            difference = np.asarray(event.preview()[0]).astype(int) - np.asarray(wanted.preview()[0])
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("load_", [load_captured, engines.ENGINES["onnx"].load])
def test_all_memory_goes_back(load_: Any, double: Double, handmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "ENGINES", {"one": Backend(("cuda",), ("onnx",), load_)})
    loaded = load(handmade, device="cuda")
    for event in loaded.stream(PROMPT, steps=8):
        if isinstance(event, Step) and event.number == 3:
            break
    del event
    loaded.generate(PROMPT)
    gc.collect()
    for stream in double.streams:
        stream.work()
    pinned = sum(block.size for block in cuda.gpu(0)._blocks)
    assert sum(double.places.values()) == pinned


def test_two_requests_at_a_time_do_not_meet(on_gpu: Pipeline, pipeline: Pipeline) -> None:
    *_, (a, b) = zip(
        on_gpu.stream("a red heart", seed=1, sampler="euler_ancestral"),
        on_gpu.stream("blue car", seed=2, sampler="euler_ancestral"),
        strict=True,
    )
    for event, prompt, seed in ((a, "a red heart", 1), (b, "blue car", 2)):
        assert isinstance(event, Done)
        wanted = pipeline.generate(prompt, seed=seed, sampler="euler_ancestral").image
        assert np.abs(np.asarray(event.result.image).astype(int) - np.asarray(wanted)).max() <= 1


def test_what_cannot_be_captured_goes_on_without_a_graph(
    on_gpu: Pipeline, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline
) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("a double: a CUDA graph cannot be captured: because")

    monkeypatch.setattr(cuda.gpu(0).driver, "capture", refuse)
    request = {"prompt": PROMPT, "seed": 3}
    wanted = pipeline.arrays(**request)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        close(on_gpu.arrays(**request), wanted)
    assert {str(each.message) for each in said} <= {
        "a double: a CUDA graph cannot be captured: because; it goes on without one"
    }


def test_the_output_is_there_after_graphs_were_loaded_at_the_same_time(
    double: Double, handmade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime prints which of CUDA's libraries it misses; that is caught, and nothing else."""
    told: list[str] = []

    def load_libraries(directory: str) -> None:
        told.append(directory)
        time.sleep(0.1)
        print("Failed to load libcudnn.so.9: not here")

    monkeypatch.setattr(
        onnx_cuda.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnx_cuda.ort, "preload_dlls", load_libraries, raising=False)
    monkeypatch.setattr(onnx_cuda, "_preload", cache(onnx_cuda._preload.__wrapped__))
    monkeypatch.setattr(selection, "ENGINES", {"onnx": engines.ENGINES["onnx"]})
    before = sys.stdout
    load(handmade, device="cuda")
    assert sys.stdout is before
    assert told == [""]
    assert onnx_cuda._preload() == " (libcudnn.so.9)"


def test_attention_is_told_nothing_that_the_provider_refuses(
    double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Attention", ["h"] * 3, ["y"], q_num_heads=2, kv_num_heads=2, softmax_precision=1),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8]) for name in "xy")
    weights = np.random.default_rng(5).normal(size=(8, 8)).astype(np.float32)
    made = helper.make_graph(nodes, "attention", [x], [y], [numpy_helper.from_array(weights, "w")])
    file = tmp_path / "attention.onnx"
    made = helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(made, file, save_as_external_data=True, location="weights", size_threshold=0)
    array = manifest.Array(dtype="float32", shape=(1, 3, 8))
    variant = manifest.Variant(engine="onnx", precision="fp32", file="attention.onnx")
    spec = manifest.Graph(inputs={"x": array}, outputs={"y": array}, variants=(variant,))
    wanted = OnnxEngine("attention", spec, file)
    given: list[Any] = []
    session = onnx_cuda.ort.InferenceSession
    monkeypatch.setattr(
        onnx_cuda.ort,
        "InferenceSession",
        lambda model, *rest, **more: given.append(model) or session(model, *rest, **more),
    )
    engine, device = onnx_cuda.CudaOnnxEngine("attention", spec, file, cuda.gpu(0)), cuda.gpu(0).device()
    attention = onnx.ModelProto.FromString(given[0]).graph.node[1]
    assert sorted(each.name for each in attention.attribute) == ["kv_num_heads", "q_num_heads"]
    values = np.random.default_rng(6).normal(size=(1, 3, 8)).astype(np.float32)
    found = device.get(engine.run({"x": device.put(values)}, device)["y"])
    np.testing.assert_allclose(found, wanted.run({"x": values})["y"], rtol=1e-5, atol=1e-6)


def test_bfloat16_goes_in_and_comes_out(double: Double, tmp_path: Path) -> None:
    """On the CPU, which stands in for the GPU here, there are its casts alone."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["wide"], ["negative"]),
        helper.make_node("Cast", ["negative"], ["y"], to=TensorProto.BFLOAT16),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["rows", 3]) for name in "xy")
    made = helper.make_graph(nodes, "negative", [x], [y])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "n.onnx")
    whole = {name: manifest.Array(dtype="float32", shape=("rows", 3)) for name in "xy"}
    variant = manifest.Variant(
        engine="onnx", precision="bf16", file="n.onnx", dtypes={"x": "bfloat16", "y": "bfloat16"}
    )
    spec = manifest.Graph(inputs={"x": whole["x"]}, outputs={"y": whole["y"]}, variants=(variant,)).of(variant)
    engine, device = onnx_cuda.CudaOnnxEngine("negative", spec, tmp_path / "n.onnx", cuda.gpu(0)), cuda.gpu(0).device()
    values = np.random.default_rng(6).normal(size=(2, 3)).astype(np.float32)
    given = fitted({"x": device.put(values)}, engine.inputs, device.cast)
    found = device.get(engine.run(given, device)["y"])
    np.testing.assert_array_equal(found, -values.astype(ml_dtypes.bfloat16))


def test_receipts(on_gpu: Pipeline) -> None:
    assert all(check.passed for check in replay(on_gpu))


def test_timings(on_gpu: Pipeline) -> None:
    timings = on_gpu.generate("a red heart").timings
    assert timings["graphs"].keys() == {"text_encoder", "denoiser", "decoder"}
    assert all(0 < seconds < timings["total"] for seconds in timings["graphs"].values())


# ---------------------------------------------------------------- arrays


@pytest.fixture(params=["double", pytest.param("hardware", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> cuda.Cuda:
    request.getfixturevalue(request.param)
    return cuda.gpu(0).device()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4), (1 << 17,)])
def test_arrays_come_and_go(shape: tuple[int, ...], dtype: str, device: cuda.Cuda) -> None:
    wanted = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    given = wanted.copy()
    array = device.put(given)
    given[...] = 1 - given.astype(np.int8)  # the array is already the device's
    found = device.get(array)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_caches_grow_and_are_reordered(device: cuda.Cuda) -> None:
    cache = np.random.default_rng(2).normal(size=(4, 3, 8, 2)).astype(np.float32)
    array = device.enlarge(device.put(cache), 16, 5)
    rows = np.array([1, 1, 3, 2])
    device.reorder_rows(array, rows, 2, 4)
    found = device.get(array)
    np.testing.assert_array_equal(found[:, :, :4], cache[rows][:, :, :4])
    np.testing.assert_array_equal(found[:, :, 4], cache[:, :, 4])
    assert not found[:, :, 5:].any()


def test_rows_are_taken(device: cuda.Cuda) -> None:
    given = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    array = device.put(given)
    assert device.take_rows(array, np.arange(4)) is array
    np.testing.assert_array_equal(device.get(device.take_rows(array, np.array([3, 0, 0]))), given[[3, 0, 0]])


def test_a_recorded_loop_gives_what_the_loop_gives(device: cuda.Cuda) -> None:
    """A sampler's table alone, its prediction being what was its input: everything that changes lies in arrays."""
    table = samplers.table(msgspec.convert(bundles.SCHEDULE, Schedule), samplers.Sampler(kind="unipc"), 7)
    noise = np.random.default_rng(4).normal(size=(2, 4, 3, 5)).astype(np.float32)

    def follow(on: Any) -> np.ndarray:
        prediction, latents = on.empty((4, 4, 3, 5), np.float32), on.put(noise.copy())
        timestep, step = on.empty((4,), np.float32), on.put(np.array([-1, 0], np.int32))
        history, coefficients = (
            on.empty((len(table.rows[0].b), *noise.shape), np.float32),
            on.put(table.coefficients(3.0)),
        )

        def advance() -> None:
            on.guide_and_step(prediction, latents, history, prediction, timestep, coefficients, step)

        advance()
        go_on = on.record(advance) or advance
        for _ in table.rows:
            go_on()
        found: np.ndarray = on.get(latents)
        return found

    np.testing.assert_allclose(follow(device), follow(cpu), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_other_libraries_share_arrays(hardware: cuda.Gpu) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    device, given = hardware.device(), np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensor = torch.from_dlpack(device.put(given))
    assert tensor.device.type == "cuda"
    np.testing.assert_array_equal(tensor.cpu().numpy(), given)
    np.testing.assert_array_equal(device.get(device.borrow(tensor * 2)), 2 * given)
    with pytest.raises(RequestError, match="strides"):
        device.borrow(tensor.transpose(0, 2))
