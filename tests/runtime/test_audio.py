"""Recordings: files and arrays of any rate and number of channels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrt.runtime import audio
from mmrt.runtime.audio import open_recording
from mmrt.runtime.errors import RequestError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(rate: int, seconds: float = 0.5) -> Any:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, tone(16000), 16000, format=kind)
    for source in (path, str(path)):
        found = open_recording(source, 16000)
        assert found.dtype == np.float32
        assert found.shape == (8000,)
        assert np.abs(found - tone(16000)).max() < (0.05 if kind == "OGG" else 1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_rates(tmp_path: Path, rate: int) -> None:
    """A tone stays the tone, but for the resampler's edges."""
    soundfile.write(tmp_path / "a.wav", tone(rate), rate)
    for source in (tmp_path / "a.wav", (tone(rate), rate)):
        found = open_recording(source, 16000)
        assert abs(len(found) - 8000) <= 1
        assert np.abs(found[500:7500] - tone(16000)[500:7500]).max() < 1e-3


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(16000), -tone(16000)], axis=1)
    assert not open_recording(stereo, 16000).any()
    np.testing.assert_array_equal(open_recording(stereo[:, :1], 16000), tone(16000))


def test_whole_numbers() -> None:
    found = open_recording(np.array([0, 16384, -32768], np.int16), 16000)
    np.testing.assert_array_equal(found, np.float32([0, 0.5, -1]))


def test_floats_of_twice_the_size() -> None:
    assert open_recording(tone(16000).astype(np.float64), 16000).dtype == np.float32


REFUSED: dict[str, tuple[Any, str]] = {
    "no samples": (np.zeros(0, np.float32), "has no samples"),
    "NaN": (np.array([0, np.nan], np.float32), "NaN or infinite"),
    "infinite": (np.array([[0, np.inf]], np.float32), "NaN or infinite"),
    "whole numbers of another size": (np.zeros(5, np.int64), r"is int64\(5,\), wanted"),
    "three dimensions": (np.zeros((2, 2, 2), np.float32), "wanted a file"),
    "a number": (3, "is int, wanted"),
    "a rate that is no number": ((np.zeros(5, np.float32), "fast"), "its rate is 'fast'"),
    "no rate": ((np.zeros(5, np.float32), 0), "its rate is 0"),
    "no file": ("no/such.wav", "no/such.wav: no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    source, message = REFUSED[name]
    with pytest.raises(RequestError, match=message):
        open_recording(source, 16000)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not a recording at all", b"fLaC" + bytes(100)])
def test_files_that_are_no_recordings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(RequestError, match=r"a\.wav: not a recording"):
        open_recording(tmp_path / "a.wav", 16000)


def test_a_file_without_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    with pytest.raises(RequestError, match="has no samples"):
        open_recording(tmp_path / "a.wav", 16000)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a recording"):
        open_recording(tmp_path, 16000)


def test_without_the_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(RequestError, match=r"package 'soundfile': pip install 'mmrt\[audio\]'"):
        open_recording(tmp_path / "a.wav", 16000)


def test_durations_for_people() -> None:
    assert audio.seconds(32001, 16000) == "2.1 s"
