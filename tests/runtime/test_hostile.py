"""Damaged and hostile bundles: each is refused in one line that names the thing, before anything of it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import damages
import pytest

import mmrt
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines import onnx as engine
from mmrt.runtime.receipt import replay


@pytest.mark.parametrize("name", damages.DAMAGES)
def test_is_refused_in_one_line_before_it_is_loaded(name: str, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage = damages.DAMAGES[name]
    damage.apply(damaged)
    loaded: list[str] = []
    monkeypatch.setattr(engine.ort, "InferenceSession", _recording(engine.ort.InferenceSession, loaded))
    with pytest.raises(mmrt.MmrtError) as caught:
        _run(damaged, damage.command)
    assert damage.says in str(caught.value)
    assert str(caught.value).isprintable()
    if damage.opened:
        assert not any("denoiser" in file for file in loaded)
    elif damage.command == "load" and not damage.seen:
        assert not loaded


def test_a_graph_that_is_loaded_late_is_checked_then(damaged: Path) -> None:
    damages.swap("graphs/image_encoder.fp32.onnx")(damaged)
    pipeline = mmrt.load(damaged)
    pipeline.generate("a red heart")
    with pytest.raises(mmrt.BundleError, match=r"image_encoder\.fp32\.onnx: sha256 is"):
        pipeline.generate("a red heart", image=pipeline.generate("a red heart").image)


@pytest.mark.parametrize(
    ("path", "says"),
    [("missing.mmrt", "no such bundle"), ("a\0b", "no such bundle"), ("x" * 300, "cannot be read: File name too long")],
)
def test_what_is_no_bundle_is_said(path: str, says: str) -> None:
    with pytest.raises(mmrt.BundleError, match=says):
        Bundle(path)


def test_a_file_is_no_bundle(handmade: Path) -> None:
    with pytest.raises(mmrt.BundleError, match="not a bundle, which is a folder"):
        Bundle(handmade / "manifest.json")


@pytest.mark.parametrize("option", [{"device": "tpu"}, {"engine": "pytorch"}, {"precision": "fp4"}])
def test_what_this_machine_does_not_have_is_an_engine_error(handmade: Path, option: dict[str, str]) -> None:
    with pytest.raises(mmrt.EngineError, match=next(iter(option.values()))):
        mmrt.load(handmade, **option)


def _run(bundle: Path, command: str) -> None:
    pipeline = mmrt.load(bundle)
    if command == "generate":
        pipeline.generate(["a red heart", "blue car"])
    if command == "verify":
        list(replay(pipeline))


def _recording(session: Callable[..., Any], files: list[str]) -> Callable[..., Any]:
    def load(file: str, *rest: Any, **more: Any) -> Any:
        files.append(file)
        return session(file, *rest, **more)

    return load
