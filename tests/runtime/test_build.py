"""Engines of a bundle, built on this machine into the user's cache, with the real TensorRT-RTX and without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_double

import mmrt
from mmrt.runtime import folders, profiles
from mmrt.runtime.build import build
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda, driver
from mmrt.runtime.engines import cache
from mmrt.runtime.engines.builder import Building
from mmrt.runtime.engines.nvidia import Library

GRAPHS = ["text_encoder", "denoiser", "decoder", "image_encoder"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cuda, "_GPUS", {})
    monkeypatch.setattr(driver, "_library", lambda: None)


def test_engines_are_built_once_and_found(handmade: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = Bundle(handmade)
    shapes = profiles.read(["denoiser.batch=1:2:4"])
    first = [building.graph for building in build(bundle, "tensorrt-rtx", shapes) if building.share == 1]
    assert sorted(first) == sorted(GRAPHS)
    engines = sorted((folders.cache() / "engines").glob("*.engine"))
    times = [engine.stat().st_mtime_ns for engine in engines]
    assert len(engines) == 4
    assert [building.share for building in build(bundle, "tensorrt-rtx", shapes)] == [1.0] * 4
    assert [engine.stat().st_mtime_ns for engine in engines] == times
    source = bundle.digest(bundle.manifest.graphs["denoiser"].variants[0].file)
    version = Library("tensorrt-rtx").version
    path, found = cache.find(cache.Wanted("tensorrt-rtx", "denoiser", "fp32", source, version, "8.9"))
    assert path in engines
    assert found.profiles[0]["batch"].max == 4
    assert not found.stripped
    with pytest.raises(mmrt.EngineError, match=r"compute capability .*, this one has 9\.0"):
        cache.find(cache.Wanted("tensorrt-rtx", "denoiser", "fp32", source, version, "9.0"))
    assert [each.name for each in (folders.cache() / "builds").iterdir()] == ["lock"]


def test_leaving_the_loop_leaves_nothing_half_written(handmade: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    work = build(Bundle(handmade), "tensorrt-rtx")
    assert next(work) == Building("text_encoder", 0.0)
    assert next(work).share > 0
    work.close()
    assert len(list((folders.cache() / "engines").glob("*"))) % 2 == 0
    assert [each.name for each in (folders.cache() / "builds").iterdir()] == ["lock"]


def test_tensorrt_wants_the_gpu(handmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double.module())
    with pytest.raises(mmrt.EngineError, match="TensorRT builds for the GPU of this machine: no NVIDIA driver is inst"):
        next(build(Bundle(handmade), "tensorrt"))


def test_without_the_library_one_line_says_so(handmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(mmrt.EngineError, match=r"TensorRT is not installed: pip install 'mmrt\[tensorrt\]'"):
        next(build(Bundle(handmade), "tensorrt"))


def test_an_old_gpu_has_engines_of_its_own() -> None:
    from mmrt.runtime.build import _capabilities

    assert "7.5" not in _capabilities("tensorrt-rtx", None)
    turing: Any = SimpleNamespace(driver=SimpleNamespace(capability=(7, 5)))
    assert _capabilities("tensorrt-rtx", turing) == ("7.5",)
    assert _capabilities("tensorrt", turing) == ("7.5",)


def test_for_a_gpu_that_the_library_does_not_know_nothing_is_built(
    handmade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    hopper = SimpleNamespace(
        driver=SimpleNamespace(capability=(9, 0), here=lambda: None, memory=lambda: (8 << 30, 16 << 30))
    )
    monkeypatch.setattr(cuda, "gpu", lambda index: hopper)
    with pytest.raises(mmrt.EngineError, match=r"builds for no GPU of compute capability 9\.0; it does for 7\.5, 8\.0"):
        list(build(Bundle(handmade), "tensorrt-rtx"))
    assert not list((folders.cache() / "engines").glob("*"))
