"""Engines of the real libraries on a real GPU: built there, and what they compute is what the CPU computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmrt
from mmrt.runtime.build import _capabilities, build
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda, driver
from mmrt.runtime.engines.builder import _capability
from mmrt.runtime.engines.nvidia import Kind, Library
from mmrt.runtime.receipt import replay

LIBRARY = driver._library  # before the tests are told that there is none


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
