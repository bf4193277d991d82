"""`mmrt inspect`, `verify`, `bench` and the group itself."""

from __future__ import annotations

import json
from pathlib import Path

import bundles
import numpy as np
import pytest
from command import Mmrt
from PIL import Image, PngImagePlugin

from mmrt.runtime import manifest_file
from mmrt.version import __version__


def test_version_and_help(mmrt: Mmrt) -> None:
    assert mmrt("--version").out == f"mmrt, version {__version__}\n"
    text = mmrt("--help").out
    for command in ("export", "generate", "verify", "inspect", "bench"):
        assert command in text


# ---------------------------------------------------------------- inspect


def test_inspect_shows_what_goes_in_and_out(mmrt: Mmrt, handmade: Path) -> None:
    ran = mmrt("inspect", handmade)
    assert (ran.code, ran.err) == (0, "")
    for line in (
        "handmade: text-to-image, ",
        "  steps             1 to 1000  [4]",
        "  size              WIDTHxHEIGHT, multiples of 8 up to 4096  [32x24]",
        "  prompt            text  [must be given]",
        "    in   latents           float32(batch, 4, height, width)",
        "    onnx fp32  graphs/denoiser.fp32.onnx",
        "2. once     image_encoder  if image is given",
        "3. diffuse  denoiser  epsilon, samplers: ddim, ddpm",
    ):
        assert line in ran.out


def test_inspect_json_is_the_manifest(mmrt: Mmrt, handmade: Path) -> None:
    read = manifest_file.decode(mmrt("inspect", handmade, "--json").out.encode())
    assert read == manifest_file.decode((handmade / "manifest.json").read_bytes())


def test_inspect_mermaid_is_a_flowchart_of_the_program(mmrt: Mmrt, handmade: Path) -> None:
    first, *lines = mmrt("inspect", handmade, "--mermaid").out.splitlines()
    assert first == "flowchart LR"
    for line in (
        "  prompt([prompt])",
        "  prompt -- prompt_ids --> text_encoder",
        "  text_encoder -- context --> denoiser",
        "  image -- image_pixels --> image_encoder",
        "  denoiser -- prediction --> loop2",
        "  loop2 -- latents --> decoder",
        "  decoder -- pixels --> image_out([image])",
    ):
        assert line in lines


def test_inspect_of_a_picture_says_how_to_make_it_again(mmrt: Mmrt, handmade: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    mmrt("generate", handmade, "a red heart", "--negative", "it's blue", "--seed", 7, "-o", path)
    ran = mmrt("inspect", path)
    assert "bundle   handmade  sha256 " in ran.out
    assert "engine   denoiser: onnx fp32 on cpu" in ran.out
    assert "again    mmrt generate handmade.mmrt --negative-prompt " in ran.out
    assert " -- 'a red heart'\n" in ran.out
    assert "--seed 7" in ran.out
    origin = json.loads(mmrt("inspect", path, "--json").out)
    assert origin["request"]["prompt"] == "a red heart"


@pytest.mark.parametrize(
    "provenance", [{}, {"bundle": 3}, {"request": "x"}, {"request": [1, {"prompt": 5}]}, {"engines": [], "mmrt": {}}]
)
def test_inspect_takes_whatever_a_picture_says(provenance: object, mmrt: Mmrt, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("mmrt", json.dumps(provenance))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    assert mmrt("inspect", tmp_path / "a.png").code == 0


def test_inspect_shows_a_terminal_nothing_to_obey(mmrt: Mmrt, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("mmrt", json.dumps({"bundle": {"name": "\x1b]0;owned\x07"}, "request": {"prompt": "\x1b[2J"}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    assert mmrt("inspect", tmp_path / "a.png").out.replace("\n", "").isprintable()


# ---------------------------------------------------------------- verify


def test_verify_of_a_good_bundle_is_a_table_and_exit_code_0(mmrt: Mmrt, handmade: Path) -> None:
    ran = mmrt("verify", handmade)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == "source: tests/bundles.py"
    assert [line.split()[0] for line in lines[2:-1]] == ["ok"] * 6
    assert lines[-1] == "6 of 6 checks passed; 8 files have their hashes"


def test_verify_names_the_row_that_fails_and_exits_1(mmrt: Mmrt, damaged: Path) -> None:
    def perturb(arrays: dict[str, np.ndarray]) -> None:
        arrays["graph/denoiser/0/out/prediction"] += np.float32(0.1)

    bundles.regolden(damaged, perturb)
    ran = mmrt("verify", damaged)
    assert ran.code == 1
    failures = [line for line in ran.out.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 1
    assert "denoiser 0: prediction (fp32)" in failures[0]
    assert failures[0].endswith("wanted relative error <= 0.001")


def test_verify_json_is_json_even_of_nan(mmrt: Mmrt, damaged: Path) -> None:
    bundles.rewrite(damaged, "graphs/denoiser.fp32.onnx.data", np.full(16, np.nan, np.float32).tobytes())
    ran = mmrt("verify", "--json", damaged)
    assert ran.code == 1
    checks = json.loads(ran.out, parse_constant=pytest.fail)
    assert [check["what"] for check in checks if not check["passed"]][:1] == ["denoiser 0: prediction"]


def test_verify_checks_the_hash_of_every_file(mmrt: Mmrt, damaged: Path) -> None:
    bundles.rewrite(damaged, "README.md", b"about this")
    (damaged / "README.md").write_bytes(b"About this")
    assert "README.md: sha256 is" in mmrt("verify", damaged).error


def test_verify_without_anything_to_check_exits_1(mmrt: Mmrt, damaged: Path) -> None:
    bundles.rewrite(damaged, "receipt.json", b'{"source": "nothing", "cases": []}')
    np.savez(damaged / "golden.npz")
    bundles.relist(damaged)
    assert mmrt("verify", damaged).code == 1


# ---------------------------------------------------------------- bench


def test_bench_tells_the_graphs_from_the_rest_and_starts_cold(mmrt: Mmrt, handmade: Path) -> None:
    ran = mmrt("bench", handmade, "red", "blue", "--repeat", 2, "--json", "--steps", 3)
    assert (ran.code, ran.err) == (0, "")
    figures = json.loads(ran.out)
    assert figures["graphs"].keys() == {"text_encoder", "denoiser", "decoder"}
    assert 0 < figures["outside"] < figures["total"]
    assert figures["outside_share"] == pytest.approx(figures["outside"] / figures["total"])
    assert (
        figures["cold"]["total"]
        >= sum(figures["cold"][part] for part in ("python", "import", "load", "generate")) - 0.01
    )
    assert 10e6 < figures["cold"]["peak_bytes"] < 2e9


def test_bench_prints_a_table(mmrt: Mmrt, handmade: Path) -> None:
    ran = mmrt("bench", handmade, "--repeat", 1)
    assert ran.code == 0
    for row in ("denoiser", "outside", "total", "cold start", "peak memory"):
        assert row in ran.out


# ---------------------------------------------------------------- export


def test_export_without_torch_says_what_to_install(mmrt: Mmrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without_torch(name: str, *rest: object, **more: object) -> object:
        if name.startswith("mmrt.export") or name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_torch)
    ran = mmrt("export", tmp_path, "-o", tmp_path / "x.mmrt")
    assert ran.error == "exporting needs the package 'torch': pip install 'mmrt[export]'"
