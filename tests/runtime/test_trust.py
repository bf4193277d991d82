"""Which engines may run: those of bundles that were trusted, whose files are what the manifest says."""

from __future__ import annotations

import os
from pathlib import Path

import bundles
import pytest

import mmrt
from mmrt.runtime import folders, trust
from mmrt.runtime.bundle import Bundle

ENGINE = "engines/decoder.fp32.tensorrt-rtx.engine"


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def with_engine(damaged: Path) -> Path:
    """A bundle with an engine, of its decoder."""
    (damaged / "engines").mkdir()
    (damaged / ENGINE).write_bytes(b"not really an engine")
    with bundles.edited(damaged) as document:
        sizes = {dim: {"min": 1, "opt": 1, "max": 8} for dim in ("batch", "h", "w")}
        build = {"source": "0" * 64, "version": "1.7.1.116", "capabilities": ["8.9"], "profiles": [sizes]}
        variant = {"engine": "tensorrt-rtx", "precision": "fp32", "file": ENGINE, "build": build}
        document["graphs"]["decoder"]["variants"].insert(0, variant)
    bundles.relist(damaged)
    return damaged


def test_a_bundle_is_trusted_only_when_the_user_says_so(with_engine: Path) -> None:
    bundle = Bundle(with_engine)
    assert not trust.trusted(bundle)
    trust.trust(bundle)
    assert trust.trusted(Bundle(with_engine))
    trust.forget(bundle)
    assert not trust.trusted(bundle)


def test_trust_is_for_exactly_this_manifest(with_engine: Path) -> None:
    trust.trust(Bundle(with_engine))
    bundles.rewrite(with_engine, ENGINE, b"another engine, listed as who changed it would")
    assert not trust.trusted(Bundle(with_engine))


def test_an_engine_that_was_changed_is_not_trusted(with_engine: Path) -> None:
    (with_engine / ENGINE).write_bytes(b"not really an Engine")
    with pytest.raises(mmrt.BundleError, match=r"decoder\.fp32\.tensorrt-rtx\.engine: sha256 is"):
        trust.trust(Bundle(with_engine))
    assert not trust.trusted(Bundle(with_engine))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no modes")
def test_decisions_that_others_could_have_made_do_not_count(with_engine: Path) -> None:
    trust.trust(Bundle(with_engine))
    (folders.config() / "trusted").chmod(0o777)
    with pytest.raises(mmrt.EngineError, match="others may write to it"):
        trust.trusted(Bundle(with_engine))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"build": None}, "`build` is what engines have"),
        ({"file": "graphs/decoder.fp32.onnx"}, "'graphs/decoder.fp32.onnx' is not named *.engine"),
        ({"engine": "onnx"}, f"'{ENGINE}' is not named *.onnx"),
        ({"engine": "openvino"}, "Invalid enum value 'openvino'"),
    ],
)
def test_variants_that_are_no_engines_are_refused(with_engine: Path, change: dict[str, object], says: str) -> None:
    with bundles.edited(with_engine) as document:
        variant = document["graphs"]["decoder"]["variants"][0]
        variant |= change
        if variant["build"] is None:
            del variant["build"]
    with pytest.raises(mmrt.BundleError) as caught:
        Bundle(with_engine)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"batch": {"min": 1, "opt": 1, "max": 8}}, "sizes are those of 'batch', free are 'batch', 'h', 'w'"),
        ({dim: {"min": 2, "opt": 1, "max": 8} for dim in ("batch", "h", "w")}, "wanted min <= opt <= max"),
        ({dim: {"min": 0, "opt": 1, "max": 8} for dim in ("batch", "h", "w")}, "Expected `int` >= 1"),
    ],
)
def test_profiles_that_are_none_are_refused(with_engine: Path, sizes: dict[str, object], says: str) -> None:
    with bundles.edited(with_engine) as document:
        document["graphs"]["decoder"]["variants"][0]["build"]["profiles"] = [sizes]
    with pytest.raises(mmrt.BundleError) as caught:
        Bundle(with_engine)
    assert says in str(caught.value)
