"""Sounds on the command line: files, their names, what made them, and how fast that is."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest
import sound_bundles
from command import Mmrt


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_bundles.build(tmp_path_factory.mktemp("sound") / "noisy.mmrt")


def frames(path: Path) -> int:
    with wave.open(str(path)) as file:
        return file.getnframes()


def test_a_sound_and_what_made_it(mmrt: Mmrt, noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = mmrt("generate", noisy, "a red heart", "--seed", 7, "--loudness", 0.5)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("out.wav  (")
    assert frames(tmp_path / "out.wav") == 3 * sound_bundles.FRAMES
    shown = mmrt("inspect", "out.wav").out
    assert "bundle   noisy  sha256" in shown
    line = next(line for line in shown.splitlines() if line.startswith("again"))
    assert line.split("noisy.mmrt ")[1] == "--loudness 0.5 --num-sounds 1 --seed 7 -- 'a red heart'"
    made = (tmp_path / "out.wav").read_bytes()
    mmrt("generate", noisy, "--loudness", 0.5, "--num-sounds", 1, "--seed", 7, "-o", "again.wav", "--", "a red heart")
    assert (tmp_path / "again.wav").read_bytes() == made
    assert json.loads(mmrt("inspect", "out.wav", "--json").out)["request"]["text"] == "a red heart"


def test_several_sounds_are_numbered(mmrt: Mmrt, noisy: Path, tmp_path: Path) -> None:
    ran = mmrt("generate", noisy, "a red heart", "car", "-n", 2, "-o", tmp_path / "a.wav", "--json")
    names = [f"a-0{number}.wav" for number in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads(ran.out)["audios"] == [str(tmp_path / name) for name in names]
    assert [frames(tmp_path / name) for name in names] == [300, 300, 100, 100]


def test_what_sounds_are_not(mmrt: Mmrt, noisy: Path, tmp_path: Path) -> None:
    assert "sounds are written as WAV" in mmrt("generate", noisy, "car", "-o", tmp_path / "a.mp3").error
    assert "--grid is for pictures" in mmrt("generate", noisy, "car", "--grid").error
    assert "makes sounds" in mmrt("generate", noisy, "car", "--preview").error
    assert "nothing that the model knows" in mmrt("generate", noisy, "", "-o", tmp_path / "a.wav").error
    (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    assert "says nothing of how it was made" in mmrt("inspect", tmp_path / "a.wav").error


def test_inspect_verify_and_bench(mmrt: Mmrt, noisy: Path) -> None:
    shown = mmrt("inspect", noisy).out
    assert "sound, from waveform, 8000 samples a second" in shown
    assert "audio_out([audio])" in mmrt("inspect", noisy, "--mermaid").out
    assert "100.0" in mmrt("verify", noisy).out
    ran = mmrt("bench", noisy, "a red heart", "--repeat", 1)
    assert "times as long as it takes" in ran.out
