"""What is wrong is one line on stderr and exit code 1, and leaves no file behind."""

from __future__ import annotations

from pathlib import Path

import click
import damages
import pytest
from command import Mmrt
from PIL import Image

from mmrt.cli.main import cli
from mmrt.cli.options import BundleCommand
from mmrt.runtime import options


@pytest.mark.parametrize("name", damages.DAMAGES)
def test_a_damaged_bundle_is_one_line(name: str, mmrt: Mmrt, damaged: Path, tmp_path: Path) -> None:
    damage = damages.DAMAGES[name]
    damage.apply(damaged)
    if damage.command == "verify":
        ran = mmrt("verify", "--json", damaged)
    else:
        ran = mmrt("generate", damaged, "a red heart", "blue car", "-o", tmp_path / "out.png")
    assert damage.says in ran.error
    assert not list(tmp_path.glob("*.png"))


BAD = {
    "no prompt": ([], "prompt is missing: give a text"),
    "unknown sampler": (["x", "--sampler", "magic"], "sampler is 'magic', wanted one of ddim"),
    "no steps": (["x", "--steps", "0"], "steps is 0, wanted 1 to 1000"),
    "guidance that is no number": (["x", "--guidance", "nan"], "guidance is nan, wanted a number from 0 to 50"),
    "illegal size": (["x", "--size", "31x24"], "size is 31x24, wanted sides that are multiples of 8"),
    "size of words": (["x", "--size", "big"], "size is 'big', wanted WIDTHxHEIGHT"),
    "absurd number": (["x", "-n", "100000"], "num_images is 100000, wanted 1 to 4096"),
    "seed too large": (["x", "--seed", str(2**64)], "seed is 18446744073709551616, wanted"),
    "missing picture": (["x", "--image", "/nowhere.png"], "/nowhere.png: no such file"),
    "picture that is none": (["x", "--image", __file__], "not a picture that can be read"),
    "strength that leaves no step": (["x", "--image", "PICTURE", "--strength", "0.01"], "strength 0.01 of 4 steps"),
    "lone surrogate": (["\udcff"], "which is not valid Unicode"),
    "output of another kind": (["x", "-o", "out.jpg"], "out.jpg: pictures are written as PNG"),
    "output in no folder": (["x", "-o", "nowhere/out.png"], "nowhere: no such folder"),
    "output that is a folder": (["x", "-o", "folder.png"], "folder.png: a folder, wanted the name of a file"),
    "output with too long a name": (["x", "-o", f"{'a' * 300}.png"], "cannot be written: File name too long"),
    "unknown device": (["x", "--device", "tpu"], "device 'tpu' is not supported"),
    "unknown precision": (["x", "--precision", "fp4"], "precision is 'fp4', handmade has fp32"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_one_line_and_leaves_what_was_there(
    name: str, mmrt: Mmrt, handmade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, says = BAD[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.png").write_bytes(b"what was there")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (32, 24)).save(tmp_path / "picture.png")
    before = sorted(tmp_path.iterdir())
    ran = mmrt("generate", handmade, *("picture.png" if each == "PICTURE" else each for each in arguments))
    assert says in ran.error
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out.png").read_bytes() == b"what was there"


@pytest.mark.parametrize("command", ["generate", "inspect", "verify", "bench"])
def test_a_bundle_that_is_not_there_is_said(command: str, mmrt: Mmrt) -> None:
    assert mmrt(command, "missing.mmrt").error == "missing.mmrt: no such bundle"


def test_a_missing_bundle_is_the_news_and_not_its_options(mmrt: Mmrt) -> None:
    assert mmrt("generate", "missing.mmrt", "x", "--seed", 3).error == "missing.mmrt: no such bundle"


def test_a_folder_that_is_no_bundle_is_said(mmrt: Mmrt, tmp_path: Path) -> None:
    assert mmrt("generate", tmp_path, "x").error == f"{tmp_path}: not a bundle: it has no manifest.json"


def test_an_input_may_not_take_the_name_of_an_option(mmrt: Mmrt, damaged: Path) -> None:
    damages.field("inputs", "json", value={"kind": "text", "default": ""})(damaged)
    assert "the input 'json' is --json on the command line, an option of mmrt" in mmrt("generate", damaged, "x").error


def test_all_names_that_inputs_may_not_take_are_known() -> None:
    commands = [command for command in cli.commands.values() if isinstance(command, BundleCommand)]
    own = [option for command in commands for option in command.params if isinstance(option, click.Option)]
    flags = {flag for option in own for flag in (*option.opts, *option.secondary_opts)}
    assert flags | {"-h", "--help"} == options.OWN


def test_a_decompression_bomb_is_one_line(mmrt: Mmrt, handmade: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (100, 100)).save(path)
    for limit in (9_000, 3_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            assert "too large a picture" in mmrt("generate", handmade, "x", "--image", path).error


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--steps", "many"], ["--seed", "1.5"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], mmrt: Mmrt, handmade: Path) -> None:
    ran = mmrt("generate", handmade, "x", *arguments)
    assert ran.code == 2
    assert ran.err.startswith("Usage: mmrt generate")
    assert arguments[0] in ran.err


def test_a_picture_that_says_nothing_is_said(mmrt: Mmrt, tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(path)
    assert "plain.png: says nothing of how it was made" in mmrt("inspect", path).error
    path.write_bytes(b"no picture")
    assert "plain.png: not a picture that can be read" in mmrt("inspect", path).error


def test_a_bug_keeps_its_traceback(mmrt: Mmrt, handmade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrt.cli.verify.load", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mmrt("verify", handmade)
