"""`mmrt generate`: files, their names, their provenance, previews, and an end by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import bundles
import damages
import numpy as np
import pytest
from command import Mmrt
from PIL import Image

import mmrt as library
from mmrt.runtime.media import read_provenance


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def pipeline(handmade: Path) -> library.Pipeline:
    return library.load(handmade)


def test_one_text_is_one_picture_and_one_line(
    mmrt: Mmrt, handmade: Path, tmp_path: Path, pipeline: library.Pipeline
) -> None:
    ran = mmrt("generate", handmade, "a red heart", "-o", tmp_path / "heart.png", "--seed", 7)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{tmp_path / 'heart.png'}  (")
    assert ran.out.endswith("seed 7)\n")
    np.testing.assert_array_equal(pixels(tmp_path / "heart.png"), pipeline.generate("a red heart", seed=7).image)
    assert [path.name for path in tmp_path.iterdir()] == ["heart.png"]


def test_the_output_is_out_png_where_none_is_named(
    mmrt: Mmrt, handmade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mmrt("generate", handmade, "a red heart", "--quiet").out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_each_input_is_an_option(mmrt: Mmrt, handmade: Path, tmp_path: Path, pipeline: library.Pipeline) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8)).save(tmp_path / "in.png")
    ran = mmrt(
        "generate", "--seed", -5, "--steps=3", handmade, "a red heart", "--negative", "blue", "--guidance", "2.5",
        "--guidance-rescale", "0.5", "--sampler", "heun", "--size", "40x16", "--image", tmp_path / "in.png",
        "--strength", "0.9", "--generator", "cuda", "-o", tmp_path / "out.png",
    )  # fmt: skip
    assert ran.code == 0
    wanted = pipeline.generate(
        "a red heart", "blue", seed=-5, steps=3, guidance=2.5, guidance_rescale=0.5, sampler="heun", size=(40, 16),
        image=tmp_path / "in.png", strength=0.9, generator="cuda",
    )  # fmt: skip
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), wanted.image)
    assert read_provenance(tmp_path / "out.png") == wanted.provenance[0]


def test_several_pictures_are_numbered(mmrt: Mmrt, handmade: Path, tmp_path: Path, pipeline: library.Pipeline) -> None:
    ran = mmrt("generate", handmade, "red", "blue car", "-n", 2, "--seed", 3, "-o", tmp_path / "a.png")
    assert ran.code == 0
    names = [f"a-{index:02}.png" for index in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len(ran.out.splitlines()) == 4
    wanted = pipeline.generate(["red", "blue car"], num_images=2, seed=3)
    for name, picture, origin in zip(names, wanted.images, wanted.provenance, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / name), picture)
        assert read_provenance(tmp_path / name) == origin


def test_a_grid_is_one_sheet_that_says_what_made_each(mmrt: Mmrt, handmade: Path, tmp_path: Path) -> None:
    assert mmrt("generate", handmade, "red", "blue", "car", "--grid", "--seed", 3, "-o", tmp_path / "a.png").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    sheet = pixels(tmp_path / "a.png")
    assert sheet.shape == (48, 64, 3)
    assert (sheet[24:, 32:] == 255).all()
    requests = read_provenance(tmp_path / "a.png")["request"]
    assert [(each["prompt"], each["seed"]) for each in requests] == [("red", 3), ("blue", 4), ("car", 5)]


def test_a_preview_rewrites_the_output_at_each_step(
    mmrt: Mmrt, handmade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmrt.runtime import media

    written: list[str] = []
    save = media.save_png
    monkeypatch.setattr(
        media, "save_png", lambda picture, path, *rest: written.append(path.name) or save(picture, path, *rest)
    )
    mmrt("generate", handmade, "red", "blue", "--preview", "--steps", 3, "-o", tmp_path / "a.png")
    assert written == ["a-00.png", "a-01.png"] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-00.png", "a-01.png"]
    assert read_provenance(tmp_path / "a-01.png")["request"]["prompt"] == "blue"


def test_a_cut_prompt_is_one_line_of_warning(mmrt: Mmrt, handmade: Path, tmp_path: Path) -> None:
    ran = mmrt("generate", handmade, "a red heart a blue car\nbig house", "-o", tmp_path / "a.png")
    assert ran.code == 0
    assert ran.err == "mmrt: the text is longer than 8 tokens and was cut; left out: 'big house'\n"


def test_a_long_text_is_no_path(mmrt: Mmrt, handmade: Path, tmp_path: Path) -> None:
    assert mmrt("generate", handmade, "red " * 5000, "-o", tmp_path / "a.png").code == 0


def test_a_text_that_names_a_folder_is_a_text(
    mmrt: Mmrt, handmade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heart").mkdir()
    assert mmrt("generate", "-o", "a.png", handmade, "heart").code == 0
    assert read_provenance("a.png")["request"]["prompt"] == "heart"


def test_help_lists_the_inputs_of_the_bundle(mmrt: Mmrt, handmade: Path) -> None:
    text = mmrt("generate", handmade, "--help").out
    for option in ("--negative", "--image", "--strength", "--steps", "--sampler", "--size", "-n", "--seed"):
        assert option in text
    assert "1 to 1000" in text
    assert "[4]" in text
    assert "--steps" not in mmrt("generate", "--help").out


def test_a_bundle_of_other_inputs_has_other_options(mmrt: Mmrt, damaged: Path, tmp_path: Path) -> None:
    with bundles.edited(damaged) as document:
        document["inputs"]["mood"] = {"kind": "choice", "default": "calm", "choices": ["calm", "wild"]}
        del document["inputs"]["guidance_rescale"]
        del document["program"][2]["guidance"]["rescale"]
    assert mmrt("generate", damaged, "red", "--mood", "wild", "-o", tmp_path / "a.png").code == 0
    assert read_provenance(tmp_path / "a.png")["request"]["mood"] == "wild"
    assert mmrt("generate", damaged, "red", "--guidance-rescale", 0.5).code == 2


def test_an_interrupted_write_leaves_no_part(
    mmrt: Mmrt, handmade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    ran = mmrt("generate", handmade, "red", "-o", tmp_path / "a.png")
    assert (ran.code, ran.err.strip()) == (130, "mmrt: interrupted")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_part_and_what_was_there(
    mmrt: Mmrt, handmade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"what was there")

    def half(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    ran = mmrt("generate", handmade, "red", "-o", tmp_path / "a.png")
    assert ran.error == f"{tmp_path / 'a.png'}: cannot be written: No space left on device"
    assert (tmp_path / "a.png").read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------- as a process of its own


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from mmrt.cli.main import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_makes_the_picture_and_says_nothing_on_stderr(handmade: Path, tmp_path: Path) -> None:
    child = start("generate", handmade, "red", "blue", "--device", "cpu", "-o", tmp_path / "a.png", "--seed", 1)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("name", ["weights with ..", "unknown operator", "token beyond the embedding", "newer format"])
def test_a_process_says_an_error_in_one_line(name: str, damaged: Path, tmp_path: Path) -> None:
    damage = damages.DAMAGES[name]
    damage.apply(damaged)
    child = start("generate", damaged, "red", "--device", "cpu", "-o", tmp_path / "a.png")
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (1, "")
    assert err.startswith("mmrt: ")
    assert err.count("\n") == 1
    assert damage.says in err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_in_one_line_and_leaves_no_part(handmade: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    request = ("red", "--device", "cpu", "--preview", "--steps", 1000, "--size", "1024x1024")
    child = start("generate", handmade, *request, "-o", output)
    deadline = time.monotonic() + 120
    while not output.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out, err.strip()) == (130, "", "mmrt: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with Image.open(output) as picture:
        picture.load()


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a\ufffd[31m\tb\n\ufffd"), (False, "a\x1b[31m\tb\n\x9b")])
def test_terminals_get_no_control_characters(monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: str) -> None:
    command = import_module("mmrt.cli.generate")
    monkeypatch.setattr(command, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: terminal)))
    assert command._safe("a\x1b[31m\tb\n\x9b") == shown
