"""What is chosen on which machine, and what is said of the rest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import bundles
import numpy as np
import pytest
from cuda_double import Double, load_captured

from mmrt.runtime import engines, selection
from mmrt.runtime.build import _onnx
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda, driver
from mmrt.runtime.engines import Backend, Engine
from mmrt.runtime.errors import EngineError, EngineWarning
from mmrt.runtime.pipeline import load

NO_DRIVER = "no NVIDIA driver is installed"
ON_CPU = dict.fromkeys(bundles.manifest()["graphs"], "onnx fp32 on cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(selection, "_SAID", set())
    monkeypatch.setattr(cuda, "_GPUS", {})


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_library", lambda: None)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Double:
    """The one GPU of this machine; nothing is launched on it."""
    made = Double(lambda launches: None)  # type: ignore[arg-type]
    monkeypatch.setattr(cuda, "DRIVER", lambda index: made)
    return made


def test_with_the_packages_and_no_driver_it_is_said_once(
    no_driver: None, monkeypatch: pytest.MonkeyPatch, handmade: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.warns(EngineWarning, match=f"runs on the CPU: {NO_DRIVER}"):
        pipeline = load(handmade)
    assert pipeline.describe().engines == ON_CPU
    assert pipeline.describe().refused == {"cuda": NO_DRIVER}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(handmade)


def test_with_neither_nothing_is_said(no_driver: None, monkeypatch: pytest.MonkeyPatch, handmade: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(handmade).describe().refused == {"cuda": NO_DRIVER}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cuda"}, f"cuda: {NO_DRIVER}"),
        ({"device": "cuda:1"}, f"cuda:1: {NO_DRIVER}"),
        ({"device": "gpu"}, "device 'gpu' is not supported; devices are auto, cpu, cuda, cuda:1 and so on"),
        ({"device": "cuda:x"}, "device 'cuda:x' is not supported"),
        ({"engine": "openvino"}, "engine 'openvino' is not supported; engines are auto, tensorrt, onnx"),
        ({"engine": "tensorrt"}, f"tensorrt: {NO_DRIVER}"),
        ({"engine": "tensorrt", "device": "cpu"}, "the engine 'tensorrt' runs on cuda, not on cpu"),
        ({"memory": "little"}, "memory is 'little', wanted full or low"),
    ],
)
def test_what_is_asked_for_and_not_there(
    options: dict[str, str], says: str, no_driver: None, handmade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"tensorrt": Backend(("cuda",), ("onnx",), load_captured), "onnx": engines.ENGINES["onnx"]}
    monkeypatch.setattr(selection, "ENGINES", known)
    with pytest.raises(EngineError) as caught:
        load(handmade, **options)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_a_gpu_is_taken_where_there_is_one(double: Double, handmade: Path) -> None:
    assert load(handmade).describe().engines["denoiser"] == "onnx fp32 on cuda:0 (a double)"


def test_too_little_memory(double: Double, handmade: Path) -> None:
    double.free = 1000
    with pytest.warns(EngineWarning, match=r"does without cuda:0: cuda:0 \(a double\) has 0.0 GB of 8.6 free"):
        pipeline = load(handmade)
    assert pipeline.describe().engines == ON_CPU
    assert 'memory "low" loads one after the other' in pipeline.describe().refused["cuda:0"]
    with pytest.raises(EngineError, match="the weights take"):
        load(handmade, device="cuda")


def test_memory_that_the_pool_keeps_is_free_for_engines(double: Double, handmade: Path) -> None:
    device = cuda.gpu(0).device()
    device.empty((double.free - 1000,), np.uint8)
    device.get(device.zeros((1,), np.uint8))
    assert double.memory()[0] <= 1000
    load(handmade, device="cuda")


def test_the_next_engine_is_taken_where_one_does_not_load(
    double: Double, handmade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: str, *_: object) -> Engine:
        raise EngineError(f"{graph}: not with me")

    known = {"tensorrt": Backend(("cuda",), ("onnx",), refuse), "onnx": engines.ENGINES["onnx"]}
    monkeypatch.setattr(selection, "ENGINES", known)
    description = load(handmade).describe()
    assert description.engines["denoiser"] == "onnx fp32 on cuda:0 (a double)"
    assert description.refused["tensorrt fp32 of denoiser"] == "denoiser: not with me"
    assert "refused tensorrt fp32 of denoiser: denoiser: not with me" in str(description)
    with pytest.raises(EngineError, match="not with me"):
        load(handmade, engine="tensorrt")


def in_bf16(handmade: Path, folder: Path, **dtypes: str) -> Path:
    """A copy whose text encoder is there in fp16 and bf16 too, and its denoiser in bf16."""
    bundle = bundles.copy(handmade, folder)
    with bundles.edited(bundle) as document:
        for graph, precision in (("text_encoder", "bf16"), ("text_encoder", "fp16"), ("denoiser", "bf16")):
            variants = document["graphs"][graph]["variants"]
            variants.append({**variants[0], "precision": precision})
        document["graphs"]["text_encoder"]["variants"][1]["dtypes"] = dtypes
    return bundle


def test_fp16_comes_before_bf16_and_bf16_before_fp32(double: Double, handmade: Path, tmp_path: Path) -> None:
    found = load(in_bf16(handmade, tmp_path)).describe().engines
    assert [found[graph].split()[1] for graph in ("text_encoder", "denoiser", "decoder")] == ["fp16", "bf16", "fp32"]


def test_a_gpu_before_ampere_has_no_bf16(double: Double, handmade: Path, tmp_path: Path) -> None:
    double.capability = (7, 5)
    found = load(in_bf16(handmade, tmp_path)).describe()
    assert found.engines["denoiser"] == "onnx fp32 on cuda:0 (a double)"
    assert found.refused["onnx bf16 of denoiser"] == (
        "bf16 takes a GPU of compute capability 8.0 or more, cuda:0 (a double) has 7.5"
    )


def test_nor_are_engines_built_for_it_of_bf16(double: Double, handmade: Path, tmp_path: Path) -> None:
    spec = Bundle(in_bf16(handmade, tmp_path)).manifest.graphs["denoiser"]
    assert _onnx("denoiser", spec, ("fp16", "bf16", "fp32"), cuda.gpu(0)).precision == "bf16"
    double.capability = (7, 5)
    assert _onnx("denoiser", spec, ("fp16", "bf16", "fp32"), cuda.gpu(0)).precision == "fp32"
    with pytest.raises(EngineError, match=r"^denoiser: bf16 takes a GPU of compute capability 8\.0 or more"):
        _onnx("denoiser", spec, ("bf16",), cuda.gpu(0))


def test_a_cpu_never_takes_bf16(handmade: Path, tmp_path: Path) -> None:
    bundle = in_bf16(handmade, tmp_path)
    engines = load(bundle, device="cpu").describe().engines
    assert engines == ON_CPU
    with pytest.raises(EngineError) as caught:
        load(bundle, device="cpu", precision="bf16")
    assert str(caught.value) == (
        "precision is 'bf16', in which ONNX Runtime has no operators on a CPU: that takes a GPU, the CPU fp32, fp16"
    )


def test_bfloat16_at_borders_needs_its_package(
    double: Double, handmade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    found = load(in_bf16(handmade, tmp_path, context="bfloat16"), precision="bf16").describe()
    assert found.engines["text_encoder"] == "onnx fp32 on cuda:0 (a double)"
    assert found.refused["onnx bf16 of text_encoder"] == (
        "NumPy has no bfloat16 without ml_dtypes: pip install ml_dtypes"
    )


def test_low_memory_has_a_stage_s_graphs_only(handmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(handmade, device="cpu", memory="low")
    seen = []
    for _ in pipeline.stream("a red heart", steps=2, seed=1):
        seen.append(sorted(pipeline._selected._loaded))
    assert seen == [["denoiser"], ["denoiser"], []]
    wanted = load(handmade, device="cpu").generate("a red heart", steps=2, seed=1).image
    found = pipeline.generate("a red heart", steps=2, seed=1).image
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    for _ in pipeline.stream("a red heart", steps=5):
        break
    assert not pipeline._selected._loaded


@pytest.mark.skipif(
    driver._library() is not None or not (importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.core")),
    reason="needs cuda-core, and no NVIDIA driver",
)
def test_every_command_works_without_a_driver_and_says_so_once(handmade: Path, tmp_path: Path) -> None:
    main = [sys.executable, "-m", "mmrt.cli.main"]
    for arguments in (
        ["generate", handmade, "a red heart", "-o", tmp_path / "out.png"],
        ["bench", handmade, "a red heart", "--repeat", "1"],
        ["inspect", handmade, "--device", "auto"],
    ):
        done = subprocess.run([*main, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, f"mmrt: runs on the CPU: {NO_DRIVER}\n")
    assert f"refused cuda: {NO_DRIVER}" in done.stdout
