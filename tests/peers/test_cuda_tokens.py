"""Tokens on a GPU are those of the CPU, on a double of the driver and on a GPU where there is one.

The double chooses them by the kernel's own source where the rules allow, and captures a step as a CUDA graph.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

import tensorrt_double
from checkpoints import export_bundle
from cuda_double import Double, load_captured
from emulation import COMPILER, Emulator
from text_checkpoints import save_text_checkpoint

from mmrt.runtime import engines, profiles, selection
from mmrt.runtime.build import build
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda, driver
from mmrt.runtime.engines import Backend
from mmrt.runtime.errors import EngineError, EngineWarning
from mmrt.runtime.pipeline import Pipeline, load

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")
LIBRARY = driver._library  # before the tests are told that there is none
TEXTS = ["a red heart", "The quick brown fox doesn't jump over 13 lazy dogs, does it?"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    return export_bundle(save_text_checkpoint("T5", folder / "checkpoint"), folder / "t5.mmrt")


@pytest.fixture(scope="module")
def on_cpu(bundle: Path) -> Pipeline:
    return load(bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["onnx", "captured", pytest.param("hardware", marks=pytest.mark.gpu)])
def on_gpu(
    request: pytest.FixtureRequest, bundle: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> Pipeline:
    if request.param == "hardware":
        monkeypatch.setattr(driver, "_library", LIBRARY)
        try:
            cuda.gpu(0)
        except EngineError as error:
            pytest.skip(str(error))
    else:
        made = Double(emulator)
        monkeypatch.setattr(cuda, "DRIVER", lambda index: made)
        monkeypatch.setattr(cuda, "_GPUS", {})
    known = {"onnx": engines.ENGINES["onnx"]}
    if request.param == "captured":
        known = {"tensorrt": Backend(("cuda",), ("onnx",), load_captured), **known}
    monkeypatch.setattr(selection, "ENGINES", known)
    return load(bundle, device="cuda")


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 34},  # the buffers grow
        {"max_new_tokens": 5, "temperature": 1.3, "top_k": 40, "top_p": 0.9, "num_texts": 2, "seed": 5},
        {"max_new_tokens": 7, "repetition_penalty": 1.7, "min_new_tokens": 5},
        {"max_new_tokens": 7, "beams": 3, "num_texts": 2},  # which the host chooses
        {"max_new_tokens": 9, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 9, "stop": ["e"]},
    ],
    ids=lambda options: "-".join(options),
)
def test_tokens_are_those_of_the_cpu(options: dict[str, Any], on_gpu: Pipeline, on_cpu: Pipeline) -> None:
    found, wanted = (pipeline.generate(TEXTS, **options) for pipeline in (on_gpu, on_cpu))
    assert found.texts == wanted.texts
    assert found.stopped == wanted.stopped
    assert found.timings["tokens"] == wanted.timings["tokens"]


def test_a_step_is_a_graph(bundle: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Double(emulator)
    monkeypatch.setattr(cuda, "DRIVER", lambda index: made)
    monkeypatch.setattr(cuda, "_GPUS", {})
    monkeypatch.setattr(selection, "ENGINES", {"tensorrt": Backend(("cuda",), ("onnx",), load_captured)})
    tokens = load(bundle, device="cuda").generate(TEXTS[0], max_new_tokens=9, min_new_tokens=9).timings["tokens"]
    assert (made.graphs, made.replays) == (1, tokens - 1)  # the first step is done as it is


def test_beyond_the_caches_of_an_engine_onnx_runtime_goes_on(
    bundle: Path, on_cpu: Pipeline, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = tensorrt_double.Gpu(emulator)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double.module())
    monkeypatch.setattr(cuda, "DRIVER", lambda index: made)
    monkeypatch.setattr(cuda, "_GPUS", {})
    monkeypatch.setattr(selection, "_SAID", set())
    for _ in build(Bundle(bundle), "tensorrt", profiles.read(["capacity=64"])):
        pass
    on_gpu = load(bundle, device="cuda")
    assert on_gpu.describe().engines["decoder"] == "tensorrt fp32 on cuda:0 (a double)"
    with pytest.warns(EngineWarning, match=r"decoder: .*capacity 128.* is asked for, its engine takes .*capacity 64"):
        found = on_gpu.generate(TEXTS[0], max_new_tokens=80, min_new_tokens=80)
    assert found.texts == on_cpu.generate(TEXTS[0], max_new_tokens=80, min_new_tokens=80).texts
    assert found.timings["tokens"] == 80
    assert made.replays == 63  # of as many places as the engine has, all but the first
