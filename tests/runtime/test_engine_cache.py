"""Engines built here: found again where they fit, and refused with the reason where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import mmrt
from mmrt.runtime import folders
from mmrt.runtime import manifest as m
from mmrt.runtime.engines import cache
from mmrt.runtime.engines.cache import Wanted

BUILD = m.Build(
    source="a" * 64,
    version="11.4.1",
    capabilities=("8.7",),
    profiles=({"batch": m.Range(min=1, opt=2, max=8)},),
)
WANTED = Wanted("tensorrt", "denoiser", "fp16", source="a" * 64, version="11.4.1", capability="8.7")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put(tmp_path: Path, content: bytes = b"engine", graph: str = "denoiser", **changes: object) -> Path:
    (tmp_path / "built").write_bytes(content)
    build = msgspec.structs.replace(BUILD, **changes)
    variant = m.Variant(engine="tensorrt", precision="fp16", file="denoiser.engine", build=build)
    return cache.put(graph, variant, tmp_path / "built")


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    path = put(tmp_path)
    assert cache.find(WANTED) == (path, BUILD)
    assert path.read_bytes() == b"engine"
    assert not (tmp_path / "built").exists()
    assert (folders.cache() / "engines").stat().st_mode & 0o077 == 0


def test_the_same_build_takes_the_place_of_the_old_and_other_sizes_do_not(tmp_path: Path) -> None:
    first = put(tmp_path)
    assert put(tmp_path, b"again") == first
    assert put(tmp_path, profiles=({"batch": m.Range(min=1, opt=1, max=1)},)) != first
    assert len(list((folders.cache() / "engines").glob("*.engine"))) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "b" * 64}, "built of another graph .sha256 bbbbbbbbbbbb., this is aaaaaaaaaaaa"),
        ({"version": "10.3.0"}, "built by TensorRT 10.3.0, here is 11.4.1"),
        ({"capabilities": ("8.9", "12.0")}, "built for GPUs of compute capability 8.9, 12.0, this one has 8.7"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    put(tmp_path, **changes)
    with pytest.raises(
        mmrt.EngineError, match=f"an engine is there, but it was {says}: mmrt build BUNDLE --target ten"
    ):
        cache.find(WANTED)


def test_of_several_reasons_the_nearest_is_said(tmp_path: Path) -> None:
    put(tmp_path, version="10.3.0")
    put(tmp_path, source="b" * 64)
    with pytest.raises(mmrt.EngineError, match=r"built by TensorRT 10\.3\.0"):
        cache.find(WANTED)


@pytest.mark.parametrize("other", [{"kind": "tensorrt-rtx"}, {"graph": "decoder"}, {"precision": "fp32"}])
def test_engines_of_something_else_are_none(tmp_path: Path, other: dict[str, str]) -> None:
    put(tmp_path)
    with pytest.raises(mmrt.EngineError, match="no engine was built here: mmrt build BUNDLE --target tensorrt"):
        cache.find(replace(WANTED, **other))


@pytest.mark.parametrize("content", [b"Engine", b"engines", b""])
def test_a_damaged_engine_is_refused(tmp_path: Path, content: bytes) -> None:
    put(tmp_path).write_bytes(content)
    with pytest.raises(mmrt.EngineError, match="its file is damaged"):
        cache.find(WANTED)


def test_a_damaged_entry_is_none(tmp_path: Path) -> None:
    put(tmp_path).with_suffix(".json").write_bytes(b"{")
    with pytest.raises(mmrt.EngineError, match="no engine was built here"):
        cache.find(WANTED)


def test_a_cache_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    put(tmp_path)
    (folders.cache() / "engines").chmod(0o770)
    with pytest.raises(mmrt.EngineError, match="others may write to it"):
        cache.find(WANTED)


def test_without_a_graph_to_compare_with_the_rest_must_fit(tmp_path: Path) -> None:
    assert put(tmp_path) == cache.find(replace(WANTED, source=None))[0]
