"""Engines of the real libraries on a real GPU: built there, and what they compute is what the CPU computes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import mmrt
from mmrt.runtime import background
from mmrt.runtime.build import _capabilities, build
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda, driver
from mmrt.runtime.engines.builder import _capability
from mmrt.runtime.engines.nvidia import Kind, Library
from mmrt.runtime.receipt import replay

LIBRARY = driver._library  # before the tests are told that there is none
HAS_PYTHON = background._has_python


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
def test_pictures_and_receipts(kind: Kind, handmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_library", LIBRARY)
    try:
        place = cuda.gpu(0)
        library = Library(kind)
        if kind == "tensorrt-rtx":
            for capability in _capabilities(kind, place):
                _capability(library, capability)
    except mmrt.EngineError as error:
        pytest.skip(str(error))
    for _ in build(Bundle(handmade), kind):
        pass
    request = {"prompt": ["a red heart", "blue car"], "steps": 6, "seed": 3, "sampler": "euler_ancestral"}
    wanted = mmrt.load(handmade, device="cpu").arrays(**request)
    for _ in range(2):  # the second time with the kernels that were kept
        pipeline = mmrt.load(handmade, device="cuda", engine=kind)
        assert pipeline.describe().engines["denoiser"].startswith(f"{kind} fp32 on cuda:0")
        found = pipeline.arrays(**request)
        np.testing.assert_allclose(found["latents"], wanted["latents"], rtol=1e-2, atol=1e-2)
        assert np.abs(found["pixels"].astype(int) - wanted["pixels"]).mean() <= 1
        assert all(check.passed for check in replay(pipeline))


@pytest.mark.gpu
def test_the_first_load_builds_beside_it(handmade: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "_library", LIBRARY)
    monkeypatch.setattr(background, "_has_python", HAS_PYTHON)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        first = mmrt.load(handmade, device="cuda")
    except mmrt.EngineError as error:
        pytest.skip(str(error))
    if (building := first._selected._building) is None:
        pytest.skip(str(first.describe()))
    request = {"prompt": "a red heart", "steps": 6, "seed": 3}
    while building.state() == "running":
        first.arrays(**request)
        time.sleep(0.1)
    if "builds for no GPU of" in str(building):
        pytest.skip(str(building))
    assert building.state() == "done", str(building)
    found = mmrt.load(handmade, device="cuda")
    assert found.describe().engines["denoiser"].startswith("tensorrt")
    wanted = first.arrays(**request)["latents"]
    np.testing.assert_allclose(found.arrays(**request)["latents"], wanted, rtol=1e-2, atol=1e-2)
