"""`mmrt build` and `mmrt trust`."""

from __future__ import annotations

from pathlib import Path

import bundles
import pytest
from command import Mmrt

from mmrt.runtime import trust
from mmrt.runtime.bundle import Bundle


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))


def test_build_says_what_it_does_and_where_the_engines_are(mmrt: Mmrt, handmade: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    ran = mmrt("build", handmade, "--target", "tensorrt-rtx", "--shapes", "batch=2,size=64x64")
    assert ran.code == 0
    assert ran.out.count(": done (") == 4
    assert ran.out.endswith(f"engines are in {tmp_path / 'XDG_CACHE_HOME' / 'mmrt' / 'engines'}\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "tensorrt-rtx", "--shapes", "bath=2"], "shapes: no graph has a free dimension 'bath'"),
        (["--target", "tensorrt-rtx", "--shapes", "batch=a"], "shapes: 'batch=a' is not NAME=SIZE"),
    ],
)
def test_what_cannot_be_built_is_one_line(mmrt: Mmrt, handmade: Path, arguments: list[str], says: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert says in mmrt("build", handmade, *arguments).error


def test_trust_of_a_bundle_without_engines(mmrt: Mmrt, handmade: Path) -> None:
    assert "has no engines, there is nothing to trust" in mmrt("trust", handmade).out
    assert not trust.trusted(Bundle(handmade))


def test_trust_can_be_taken_back(mmrt: Mmrt, handmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "engines", lambda bundle: ["golden.npz"])
    assert "its 1 engines may run, sha256" in mmrt("trust", handmade).out
    assert trust.trusted(Bundle(handmade))
    assert "its engines are not run" in mmrt("trust", handmade, "--forget").out
    assert not trust.trusted(Bundle(handmade))


def test_inspect_says_what_an_engine_was_built_for(mmrt: Mmrt, damaged: Path) -> None:
    file = "engines/decoder.fp32.tensorrt-rtx.engine"
    (damaged / "engines").mkdir()
    (damaged / file).write_bytes(b"not really an engine")
    with bundles.edited(damaged) as document:
        sizes = {dim: {"min": 1, "opt": 2, "max": 8} for dim in ("batch", "h", "w")}
        build = {"source": "0" * 64, "version": "1.7.1.116", "capabilities": ["8.9", "12.0"], "profiles": [sizes]}
        variant = {"engine": "tensorrt-rtx", "precision": "fp32", "file": file, "build": build}
        document["graphs"]["decoder"]["variants"].insert(0, variant)
    bundles.relist(damaged)
    out = mmrt("inspect", damaged).out
    assert "      built by 1.7.1.116 for GPUs 8.9, 12.0\n      sizes batch=1:2:8, h=1:2:8, w=1:2:8\n" in out
    assert "its 1 engines may run" in mmrt("trust", damaged).out
