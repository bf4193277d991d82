"""The TensorRT backend over a double of its modules: what it loads, what it refuses, and what it asks of a context."""

from __future__ import annotations

import gc
import json
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bundles
import msgspec
import numpy as np
import onnx
import pytest
import tensorrt_double as double
from cuda_double import Double
from emulation import COMPILER, Emulator
from onnx import TensorProto, helper

import mmrt
from mmrt.runtime import folders, selection, trust
from mmrt.runtime import manifest as m
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda
from mmrt.runtime.engines import cache, tensorrt
from mmrt.runtime.engines.context import _ACTIVATIONS
from mmrt.runtime.engines.nvidia import Kind, Library
from mmrt.runtime.errors import EngineWarning

KINDS: tuple[Kind, ...] = ("tensorrt", "tensorrt-rtx")
CONTEXT = bundles.encode_ids(bundles.ids("a red heart", "blue car"))


class Array:
    """An array of the double's GPU, in the host's memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = self.owner = values
        self.shape, self.dtype, self.nbytes = values.shape, values.dtype, values.nbytes
        self.pointer = values.ctypes.data if values.nbytes else 0


class Gpu:
    """A place and what drives it: notes which streams waited for what."""

    kind = "cuda"
    name = "cuda:0"

    def __init__(self, capability: tuple[int, int] = (8, 7)) -> None:
        self.driver = SimpleNamespace(
            capability=capability,
            here=lambda: double.CURRENT.add(threading.get_ident()),
            enqueue=lambda stream, work: work(),
            record=lambda stream: ("event", stream),
            wait=lambda stream, event: self.waits.append((stream, event)),
        )
        self.waits: list[Any] = []
        self.streams = 0

    def device(self) -> Device:
        self.streams += 1
        return Device(self, self.streams)


class Device:
    kind = "cuda"

    def __init__(self, place: Gpu, stream: int) -> None:
        self.place, self.stream, self.handle = place, stream, 1000 + stream

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        return Array(np.full(shape, 99, dtype))

    def put(self, array: np.ndarray) -> Array:
        return Array(np.ascontiguousarray(array))

    def copy(self, array: Array, values: Array) -> None:
        array.values[...] = values.values


@pytest.fixture(autouse=True)
def doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The double in place of both modules, and empty folders."""
    monkeypatch.setitem(sys.modules, "tensorrt", double.module("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", double.module("tensorrt-rtx"))
    monkeypatch.setattr(double, "CURRENT", set())
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


def build(bundle: Bundle, graph: str, *ranges: tuple[int, int], **changes: Any) -> m.Build:
    """What an engine of a graph would say, for these ranges of every free dimension, one a profile."""
    spec = bundle.manifest.graphs[graph]
    free = dict.fromkeys(dim for array in spec.inputs.values() for dim in array.shape if isinstance(dim, str))
    made = m.Build(
        source=bundle.digest(spec.variants[-1].file),
        version=double.VERSION,
        capabilities=("8.7",),
        profiles=tuple(
            {dim: m.Range(min=least, opt=least, max=most) for dim in free} for least, most in ranges or [(1, 8)]
        ),
    )
    return msgspec.structs.replace(made, **changes)


def content(bundle: Bundle, graph: str, built: m.Build, path: Path) -> Path:
    file = bundle.path / bundle.manifest.graphs[graph].variants[-1].file
    sizes = [{dim: (size.min, size.max) for dim, size in profile.items()} for profile in built.profiles]
    return double.engine_file(path, file, sizes)


def put(kind: Kind, bundle: Bundle, graph: str, *ranges: tuple[int, int], **changes: Any) -> Path:
    """Put an engine of a graph into the cache."""
    built = build(bundle, graph, *ranges, **changes)
    variant = m.Variant(engine=kind, precision="fp32", file=f"{graph}.engine", build=built)
    return cache.put(graph, variant, content(bundle, graph, built, bundle.path.parent / "built"))


def load(kind: Kind, bundle: Bundle, graph: str, gpu: Gpu) -> tensorrt.TensorRtEngine:
    spec = bundle.manifest.graphs[graph]
    return tensorrt.load(kind, graph, spec, spec.variants[0], bundle, gpu)  # type: ignore[arg-type]


def given(device: Device, batch: int = 2, height: int = 3, width: int = 5) -> dict[str, Array]:
    latents = np.random.default_rng(batch).normal(size=(batch, 4, height, width)).astype(np.float32)
    arrays = {"latents": latents, "timestep": np.arange(batch, dtype=np.float32)}
    return {name: device.put(each) for name, each in (arrays | {"context": CONTEXT[[0] * batch]}).items()}


def wanted(arrays: dict[str, Array]) -> np.ndarray:
    return bundles.denoise(**{name: each.values for name, each in arrays.items()})


def context(engine: tensorrt.TensorRtEngine, index: int = 0) -> double.Context:
    return engine._engine.contexts[index]


# ---------------------------------------------------------------- what runs


@pytest.mark.parametrize("kind", KINDS)
def test_run_gives_what_the_graph_computes(kind: Kind, damaged: Path, gpu: Gpu) -> None:
    put(kind, Bundle(damaged), "denoiser")
    engine, device = load(kind, Bundle(damaged), "denoiser", gpu), gpu.device()
    for batch in (2, 2, 1):
        arrays = given(device, batch)
        found = engine.run(arrays | {"stranger": device.put(np.zeros(3))}, device)
        np.testing.assert_allclose(found["prediction"].values, wanted(arrays), atol=1e-6)
    assert len(engine._engine.contexts) == 1
    assert set(context(engine).streams) == {device.handle}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_loop_sets_nothing_again(kind: Kind, damaged: Path, gpu: Gpu) -> None:
    put(kind, Bundle(damaged), "denoiser")
    engine, device = load(kind, Bundle(damaged), "denoiser", gpu), gpu.device()
    arrays = given(device)
    call, outputs = engine.bind(arrays, device=device)
    pointer = outputs["prediction"].pointer
    for number in range(5):
        arrays["latents"].values[...] = number
        call()
        np.testing.assert_allclose(outputs["prediction"].values, wanted(arrays), atol=1e-6)
    assert outputs["prediction"].pointer == pointer
    assert context(engine).set == {"shape": 3, "address": 4, "memory": 1, "size": 1, "execute": 5}


def test_only_what_changes_is_set_again(damaged: Path, gpu: Gpu) -> None:
    put("tensorrt", Bundle(damaged), "denoiser")
    engine, device = load("tensorrt", Bundle(damaged), "denoiser", gpu), gpu.device()
    arrays = given(device)
    place = {"prediction": device.empty((2, 4, 3, 5), np.float32)}
    for _ in range(2):
        call, outputs = engine.bind(arrays, place, device)
        call()
        assert outputs == place
        del call
    assert context(engine).set == {"shape": 3, "address": 4, "memory": 1, "size": 1, "execute": 2}
    arrays["latents"] = device.put(arrays["latents"].values[:, :, :2])
    engine.run(arrays, device)
    assert context(engine).set["shape"] == 4
    assert context(engine).set["size"] == 2


def test_loops_that_are_bound_at_the_same_time_do_not_meet(damaged: Path, gpu: Gpu) -> None:
    put("tensorrt", Bundle(damaged), "denoiser")
    engine = load("tensorrt", Bundle(damaged), "denoiser", gpu)
    one, two = gpu.device(), gpu.device()
    first, second = given(one), given(two, 3, 4, 4)
    (call_first, found_first), (call_second, found_second) = (
        engine.bind(first, device=one),
        engine.bind(second, device=two),
    )
    for call in (call_first, call_second, call_first):
        call()
    np.testing.assert_allclose(found_first["prediction"].values, wanted(first), atol=1e-6)
    np.testing.assert_allclose(found_second["prediction"].values, wanted(second), atol=1e-6)
    assert [set(each.streams) for each in engine._engine.contexts] == [{one.handle}, {two.handle}]
    assert gpu.waits == []


def test_a_context_that_is_used_again_waits_for_what_it_did(damaged: Path, gpu: Gpu) -> None:
    put("tensorrt", Bundle(damaged), "denoiser")
    engine = load("tensorrt", Bundle(damaged), "denoiser", gpu)
    one, two = gpu.device(), gpu.device()
    engine.run(given(one), one)
    engine.run(given(two), two)
    assert len(engine._engine.contexts) == 1
    assert gpu.waits == [(two.stream, ("event", one.stream))]


def test_many_threads_have_a_context_each(damaged: Path, gpu: Gpu) -> None:
    put("tensorrt", Bundle(damaged), "denoiser")
    engine = load("tensorrt", Bundle(damaged), "denoiser", gpu)
    errors: list[BaseException] = []

    def work(batch: int) -> None:
        try:
            device = gpu.device()
            for _ in range(10):
                arrays = given(device, batch)
                found = engine.run(arrays, device)["prediction"].values
                np.testing.assert_allclose(found, wanted(arrays), atol=1e-6)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(engine._engine.contexts) <= 4


def test_engines_of_a_request_share_the_memory_of_their_activations(damaged: Path, gpu: Gpu) -> None:
    bundle = Bundle(damaged)
    engines = {}
    for graph in ("denoiser", "decoder"):
        put("tensorrt", bundle, graph)
        engines[graph] = load("tensorrt", bundle, graph, gpu)
    device, other = gpu.device(), gpu.device()
    arrays = given(device)
    call, outputs = engines["denoiser"].bind(arrays, device=device)
    pixels = engines["decoder"].run({"latents": arrays["latents"]}, device)["pixels"]
    call()
    np.testing.assert_allclose(outputs["prediction"].values, wanted(arrays), atol=1e-6)
    np.testing.assert_array_equal(pixels.values, bundles.decode(arrays["latents"].values))
    assert context(engines["denoiser"]).memory[0] == context(engines["decoder"]).memory[0]
    engines["decoder"].run({"latents": other.put(arrays["latents"].values)}, other)
    assert context(engines["decoder"]).memory[0] != context(engines["denoiser"]).memory[0]
    kept = len(_ACTIVATIONS)
    del call, device, arrays, pixels, outputs
    gc.collect()
    assert len(_ACTIVATIONS) == kept - 1  # the memory goes with the request


def test_the_first_profile_that_fits_is_taken(damaged: Path, gpu: Gpu) -> None:
    put("tensorrt", Bundle(damaged), "denoiser", (3, 3), (1, 8))
    engine, device = load("tensorrt", Bundle(damaged), "denoiser", gpu), gpu.device()
    for batch, height, width in ((3, 3, 3), (3, 4, 3), (3, 3, 3)):
        arrays = given(device, batch, height, width)
        found = engine.run(arrays, device)["prediction"].values
        np.testing.assert_allclose(found, wanted(arrays), atol=1e-6)
    assert context(engine).set["profile"] == 2


@pytest.mark.parametrize("own", [True, False])
def test_a_cache_is_changed_in_place(own: bool, tmp_path: Path, gpu: Gpu) -> None:
    value = helper.make_tensor_value_info
    shape = ["rows", 4]
    graph = helper.make_graph(
        [helper.make_node("Add", ["old", "new"], ["grown"])],
        "cache",
        [value("old", TensorProto.FLOAT, shape), value("new", TensorProto.FLOAT, shape)],
        [value("grown", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "c.onnx")
    file = double.engine_file(tmp_path / "c.engine", tmp_path / "c.onnx", [{"rows": (1, 8)}], {"grown": "old"})
    array = m.Array(dtype="float32", shape=("rows", 4))
    variant = m.Variant(engine="onnx", precision="fp32", file="c.onnx")
    spec = m.Graph(inputs={"old": array, "new": array}, outputs={"grown": array}, variants=(variant,))
    rows = {"rows": m.Range(min=1, opt=1, max=8)}
    built = m.Build(source="0" * 64, version=double.VERSION, capabilities=("8.7",), profiles=(rows,))
    engine = tensorrt.TensorRtEngine(Library("tensorrt"), "cache", spec, file, built, gpu)  # type: ignore[arg-type]
    device = gpu.device()
    arrays = {name: device.put(np.ones((2, 4), np.float32)) for name in ("old", "new")}
    call, outputs = engine.bind(arrays, {"grown": arrays["old"]} if own else {}, device)
    for _ in range(3):
        call()
    assert (outputs["grown"] is arrays["old"]) == own
    assert (outputs["grown"].values == (4 if own else 2)).all()  # a function, where the place is another
    assert (arrays["old"].values == (4 if own else 1)).all()


def test_a_logger_is_lent_again_and_never_let_go() -> None:
    first, second = Library("tensorrt"), Library("tensorrt")
    log, other = id(first.log), second.log
    assert first.log is not other
    first.log.log(double.ILogger.ERROR, "of the first")
    known = weakref.ref(first.log)
    del first
    gc.collect()
    assert known() is not None
    third = Library("tensorrt")
    assert id(third.log) == log
    assert third.log.take() == ""


def test_a_request_goes_on_in_another_thread(damaged: Path, gpu: Gpu) -> None:
    put("tensorrt", Bundle(damaged), "denoiser")
    engine, device = load("tensorrt", Bundle(damaged), "denoiser", gpu), gpu.device()
    arrays = given(device)
    with ThreadPoolExecutor(1) as other:
        found = other.submit(engine.run, arrays, device).result()["prediction"].values
    np.testing.assert_allclose(found, wanted(arrays), atol=1e-6)


def test_an_engine_that_reads_from_the_hosts_memory_is_refused(damaged: Path, gpu: Gpu) -> None:
    bundle = Bundle(damaged)
    built = build(bundle, "denoiser")
    file = content(bundle, "denoiser", built, damaged.parent / "built")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hosts": ["timestep"]}))
    cache.put("denoiser", m.Variant(engine="tensorrt", precision="fp32", file="denoiser.engine", build=built), file)
    with pytest.raises(mmrt.EngineError, match=r"shapes follow from the input 'timestep': TensorRT 11\.4\.1 has"):
        load("tensorrt", bundle, "denoiser", gpu)


def test_dimensions_of_one_size_are_fixed(damaged: Path, gpu: Gpu) -> None:
    put("tensorrt", Bundle(damaged), "text_encoder", (2, 2))
    engine = load("tensorrt", Bundle(damaged), "text_encoder", gpu)
    assert engine.inputs["prompt_ids"].shape == (2, 8)
    device = gpu.device()
    with pytest.raises(mmrt.RequestError, match=r"'prompt_ids' is int64\(1, 8\), wanted int64\(2, 8\)"):
        engine.run({"prompt_ids": device.put(bundles.ids("a red heart"))}, device)


def test_an_engine_without_weights_takes_the_bundles(damaged: Path, gpu: Gpu) -> None:
    bundle = Bundle(damaged)
    built = build(bundle, "denoiser", stripped=True)
    file = content(bundle, "denoiser", built, damaged.parent / "built")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"whole": False}))
    variant = m.Variant(engine="tensorrt", precision="fp32", file="denoiser.engine", build=built)
    cache.put("denoiser", variant, file)
    engine, device = load("tensorrt", bundle, "denoiser", gpu), gpu.device()
    arrays = given(device)
    np.testing.assert_allclose(engine.run(arrays, device)["prediction"].values, wanted(arrays), atol=1e-6)


def test_compiled_kernels_are_kept_for_the_next_process(damaged: Path, gpu: Gpu) -> None:
    put("tensorrt-rtx", Bundle(damaged), "denoiser")
    compiled = []
    for _ in range(2):
        engine, device = load("tensorrt-rtx", Bundle(damaged), "denoiser", gpu), gpu.device()
        for batch in (1, 2, 1):
            engine.run(given(device, batch), device)
        compiled.append(context(engine).how.cache.compiled)
    assert compiled == [2, 0]
    assert len(list((folders.cache() / "kernels").iterdir())) == 1


# ---------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"latents": np.zeros((2, 4, 3, 5), np.float16)}, "input 'latents' is float16(2, 4, 3, 5), wanted float32"),
        ({"timestep": np.zeros(3, np.float32)}, "'timestep' is float32(3,), wanted float32(batch) with batch 2"),
        (
            {"latents": np.zeros((2, 4, 9, 5), np.float32)},
            "denoiser: batch 2, height 9, width 5 is asked for, its engine takes batch 1 to 8, height 1 to 8",
        ),
    ],
)
def test_what_does_not_fit_is_said_at_the_border(
    arrays: dict[str, np.ndarray], says: str, damaged: Path, gpu: Gpu
) -> None:
    put("tensorrt", Bundle(damaged), "denoiser")
    engine, device = load("tensorrt", Bundle(damaged), "denoiser", gpu), gpu.device()
    with pytest.raises(mmrt.RequestError) as caught:
        engine.run(given(device) | {name: device.put(each) for name, each in arrays.items()}, device)
    assert says in str(caught.value)
    engine.run(given(device), device)
    assert len(engine._engine.contexts) == 1  # none is lost


def test_what_fails_in_the_library_is_one_line(damaged: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    put("tensorrt", Bundle(damaged), "denoiser")
    engine, device = load("tensorrt", Bundle(damaged), "denoiser", gpu), gpu.device()
    monkeypatch.setattr(double.Context, "execute_async_v3", lambda self, stream: self._fail("out\nof luck"))
    with pytest.raises(mmrt.EngineError, match=r"denoiser: TensorRT 11\.4\.1 failed: out of luck"):
        engine.run(given(device), device)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_driver_refuses_is_one_line(kind: Kind, damaged: Path, gpu: Gpu) -> None:
    path = put(kind, Bundle(damaged), "denoiser")
    error = "CUDA driver version is insufficient for CUDA runtime version"
    for changed in {"error": error}, {"old": 1}:
        path.write_text(json.dumps(changed if kind == "tensorrt-rtx" or "error" in changed else {"error": error}))
        entry = json.loads(path.with_suffix(".json").read_text())
        entry["file"] = msgspec.to_builtins(m.File(bytes=path.stat().st_size, sha256=mmrt_hash(path)))
        path.with_suffix(".json").write_text(json.dumps(entry))
        with pytest.raises(mmrt.EngineError) as caught:
            load(kind, Bundle(damaged), "denoiser", gpu)
        old = kind == "tensorrt-rtx" and "old" in changed
        assert ("cannot use it: version mismatch, unsupported cc" if old else error) in str(caught.value)


def mmrt_hash(path: Path) -> str:
    from mmrt.runtime.bundle import hash_file

    return hash_file(path)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_module_one_line_says_so(
    kind: Kind, damaged: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind.replace("-", "_"), None)
    extra = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}[kind]
    with pytest.raises(mmrt.EngineError, match=rf"is not installed: pip install 'mmrt\[{extra}\]'"):
        load(kind, Bundle(damaged), "denoiser", gpu)


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_was_built_one_line_says_how(kind: Kind, damaged: Path, gpu: Gpu) -> None:
    with pytest.raises(mmrt.EngineError, match=f"no engine was built here: mmrt build {damaged} --target {kind}"):
        load(kind, Bundle(damaged), "denoiser", gpu)


def test_an_engine_of_another_graph_is_refused(damaged: Path, gpu: Gpu) -> None:
    bundle = Bundle(damaged)
    built = build(bundle, "decoder", source=bundle.digest(bundle.manifest.graphs["denoiser"].variants[0].file))
    variant = m.Variant(engine="tensorrt", precision="fp32", file="denoiser.engine", build=built)
    cache.put("denoiser", variant, content(bundle, "decoder", built, damaged.parent / "built"))
    with pytest.raises(mmrt.BundleError, match=r"inputs are \['latents'\], the manifest says"):
        load("tensorrt", bundle, "denoiser", gpu)


# ---------------------------------------------------------------- engines that come with a bundle


@pytest.fixture
def shipped(damaged: Path) -> Iterator[Path]:
    """The bundle with an engine of its denoiser."""
    bundle = Bundle(damaged)
    (damaged / "engines").mkdir()
    built = build(bundle, "denoiser")
    content(bundle, "denoiser", built, damaged / "engines/denoiser.engine")
    variant = m.Variant(engine="tensorrt-rtx", precision="fp32", file="engines/denoiser.engine", build=built)
    with bundles.edited(damaged) as document:
        document["graphs"]["denoiser"]["variants"].insert(0, msgspec.to_builtins(variant))
    bundles.relist(damaged)
    return damaged


def edited(shipped: Path, **changes: Any) -> Bundle:
    """With another build in the manifest, trusted."""
    with bundles.edited(shipped) as document:
        document["graphs"]["denoiser"]["variants"][0]["build"] |= changes
    trust.trust(Bundle(shipped))
    return Bundle(shipped)


def test_an_engine_of_a_bundle_runs_after_it_was_trusted(shipped: Path, gpu: Gpu) -> None:
    with pytest.raises(mmrt.EngineError, match="are code, and not trusted: mmrt trust "):
        load("tensorrt-rtx", Bundle(shipped), "denoiser", gpu)
    trust.trust(Bundle(shipped))
    engine, device = load("tensorrt-rtx", Bundle(shipped), "denoiser", gpu), gpu.device()
    arrays = given(device)
    np.testing.assert_allclose(engine.run(arrays, device)["prediction"].values, wanted(arrays), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "b" * 64}, "built of another graph .sha256 bbbbbbbbbbbb., this is"),
        ({"version": "1.6.1"}, "built by TensorRT-RTX 1.6.1, here is 11.4.1"),
        ({"capabilities": ["8.9", "12.0"]}, "built for GPUs of compute capability 8.9, 12.0, this one has 8.7"),
        ({"stripped": True}, None),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_before_it_is_read(
    changes: dict[str, Any], says: str | None, shipped: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = edited(shipped, **changes)
    read: list[Path] = []
    monkeypatch.setattr(tensorrt.TensorRtEngine, "_deserialized", lambda self, file: read.append(file))
    monkeypatch.setattr(tensorrt.TensorRtEngine, "_refit", lambda self, onnx: read.append(onnx) or 1 / 0)
    if says is None:
        with pytest.raises(ZeroDivisionError):
            load("tensorrt-rtx", bundle, "denoiser", gpu)
        assert [file.name for file in read] == ["denoiser.engine", "denoiser.fp32.onnx"]
        return
    with pytest.raises(mmrt.EngineError, match=f"engines/denoiser.engine: it was {says}"):
        load("tensorrt-rtx", bundle, "denoiser", gpu)
    assert read == []


def test_an_engine_that_was_changed_after_it_was_trusted_is_refused(shipped: Path, gpu: Gpu) -> None:
    trust.trust(Bundle(shipped))
    file = shipped / "engines/denoiser.engine"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(mmrt.BundleError, match=r"denoiser\.engine: sha256 is"):
        load("tensorrt-rtx", Bundle(shipped), "denoiser", gpu)


# ---------------------------------------------------------------- the real library


def test_without_a_driver_the_real_library_says_so_in_one_line(tmp_path: Path, gpu: Gpu, damaged: Path) -> None:
    sys.modules.pop("tensorrt_rtx")
    pytest.importorskip("tensorrt_rtx")
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    from mmrt.runtime.engines import builder

    bundle, library = Bundle(damaged), Library("tensorrt-rtx")
    spec = bundle.manifest.graphs["decoder"]
    built = build(bundle, "decoder", version=library.version, capabilities=("8.7",))
    file = tmp_path / "decoder.engine"
    for_any = msgspec.structs.replace(built, capabilities=builder.CAPABILITIES)
    for _ in builder.build(library, "decoder", spec, bundle.path / spec.variants[0].file, for_any, file):
        pass
    variant = m.Variant(engine="tensorrt-rtx", precision="fp32", file="decoder.engine", build=built)
    cache.put("decoder", variant, file)
    with pytest.raises(mmrt.EngineError) as caught:
        load("tensorrt-rtx", bundle, "decoder", gpu)
    assert "CUDA driver version is insufficient" in str(caught.value)
    assert "TensorRT-RTX" in str(caught.value)


# ---------------------------------------------------------------- a whole request, on a double of the GPU too


class Prompt(Double):
    """A GPU whose libraries put their work into the stream when they are called, as TensorRT does."""

    def here(self) -> None:
        double.CURRENT.add(threading.get_ident())

    def stream(self) -> Any:
        made = super().stream()
        double.STREAMS[self.handle(made)] = made.ask
        return made

    def enqueue(self, stream: Any, work: Any) -> None:
        work()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if COMPILER is None:
        pytest.skip("needs g++")
    return Emulator(tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_request_gives_what_the_cpu_gives(
    kind: Kind, damaged: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Prompt(emulator)
    monkeypatch.setattr(cuda, "DRIVER", lambda index: made)
    monkeypatch.setattr(cuda, "_GPUS", {})
    monkeypatch.setattr(double, "STREAMS", {})
    bundle = Bundle(damaged)
    for graph in bundle.manifest.graphs:
        put(kind, bundle, graph, (1, 64), capabilities=("8.9",))
    pipeline = mmrt.load(damaged, device="cuda", engine=kind)
    assert pipeline.describe().engines["denoiser"] == f"{kind} fp32 on cuda:0 (a double)"
    picture = np.random.default_rng(3).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    for more in ({"num_images": 3}, {"size": (40, 16), "sampler": "euler_ancestral"}, {"image": picture}):
        request = {"prompt": ["a red heart", "blue car"], "steps": 6, "seed": 3} | more
        found, wanted_ = pipeline.arrays(**request), mmrt.load(damaged, device="cpu").arrays(**request)
        np.testing.assert_allclose(found["latents"], wanted_["latents"], rtol=1e-4, atol=1e-4)
        assert np.abs(found["pixels"].astype(int) - wanted_["pixels"]).max() <= 1
    assert made.replays > 6


def test_sizes_that_an_engine_was_not_built_for_go_to_onnx_runtime(
    damaged: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = double.Gpu(emulator)
    monkeypatch.setattr(cuda, "DRIVER", lambda index: made)
    monkeypatch.setattr(cuda, "_GPUS", {})
    monkeypatch.setattr(selection, "_SAID", set())
    bundle = Bundle(damaged)
    for graph in bundle.manifest.graphs:
        (sizes,) = build(bundle, graph, (1, 64)).profiles
        rows = m.Range(min=1, opt=2, max=2 if graph == "denoiser" else 64)
        put("tensorrt", bundle, graph, capabilities=("8.9",), profiles=({**sizes, "batch": rows},))
    pipeline, on_cpu = mmrt.load(damaged, device="cuda"), mmrt.load(damaged, device="cpu")

    def same(prompts: list[str]) -> int:
        """Whether a request gives what it gives on the CPU; how many steps were replayed as a CUDA graph."""
        before, request = made.replays, {"prompt": prompts, "steps": 5, "seed": 3, "sampler": "ddim"}
        found, wanted_ = pipeline.arrays(**request), on_cpu.arrays(**request)
        np.testing.assert_allclose(found["latents"], wanted_["latents"], rtol=1e-4, atol=1e-4)
        assert np.abs(found["pixels"].astype(int) - wanted_["pixels"]).max() <= 1
        return made.replays - before

    assert same(["a red heart"]) == 4
    assert pipeline.describe().engines["denoiser"] == "tensorrt fp32 on cuda:0 (a double)"
    with pytest.warns(EngineWarning) as said:
        assert same(["a red heart", "blue car"]) == 0
    (message,) = (str(each.message) for each in said)
    assert message.startswith("denoiser: batch 4, height 3, width 4 is asked for, its engine takes batch 1 to 2, h")
    assert message.endswith("; --shapes builds others; ONNX Runtime takes them meanwhile")
    assert same(["blue car"]) == 4
    assert pipeline.describe().engines["denoiser"] == "tensorrt fp32 on cuda:0 (a double), onnx fp32 at other sizes"


def test_sizes_that_nothing_takes_are_the_callers(
    damaged: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise mmrt.EngineError("ONNX Runtime is not here")

    monkeypatch.setattr(cuda, "DRIVER", lambda index: double.Gpu(emulator))
    monkeypatch.setattr(cuda, "_GPUS", {})
    monkeypatch.setattr(
        selection, "ENGINES", selection.ENGINES | {"onnx": selection.ENGINES["onnx"]._replace(load=refuse)}
    )
    bundle = Bundle(damaged)
    for graph in bundle.manifest.graphs:
        put("tensorrt", bundle, graph, (1, 8), capabilities=("8.9",))
    pipeline = mmrt.load(damaged, device="cuda")
    with pytest.raises(mmrt.RequestError, match=r"batch 16, .* and ONNX Runtime does not take them: ONNX"):
        pipeline.generate(["a red heart"] * 8, steps=2)
    assert pipeline.generate("a red heart", steps=2).images


def test_where_no_engine_was_built_onnx_runtime_serves_and_the_command_is_said_once(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Double(lambda launches: None)  # type: ignore[arg-type]
    monkeypatch.setattr(cuda, "DRIVER", lambda index: made)
    monkeypatch.setattr(cuda, "_GPUS", {})
    monkeypatch.setattr(selection, "_SAID", set())
    says = f"no engine was built here: mmrt build {damaged} --target tensorrt"
    with pytest.warns(EngineWarning) as said:
        description = mmrt.load(damaged, device="cuda", build=False).describe()
    assert [str(each.message) for each in said] == [f"{says}; another engine serves meanwhile"]
    assert description.engines["denoiser"] == "onnx fp32 on cuda:0 (a double)"
    assert description.refused["tensorrt fp32 of denoiser"] == says
    assert description.refused["tensorrt-rtx fp32 of denoiser"] == f"{says}-rtx"
    with pytest.raises(mmrt.EngineError, match=says):
        mmrt.load(damaged, device="cuda", engine="tensorrt")
