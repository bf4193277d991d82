"""Sounds as WAV files, read back by another library, and what made them."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.sound import Sound, is_wav, read_provenance, sounds

PROVENANCE = {"mmrt": "0", "request": {"text": "红心 \u0000 \"'", "seed": 7}}


def wave_of(channels: int) -> np.ndarray:
    time = np.arange(800) / 8000
    tones = np.stack([np.sin(2 * np.pi * 440 * (1 + part) * time) for part in range(channels)], axis=1)
    return (tones if channels > 1 else tones[:, 0]).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2])
def test_wav_is_read_by_others(tmp_path: Path, channels: int) -> None:
    samples = wave_of(channels) * 1.2  # louder than can be
    Sound(samples, 8000).save(tmp_path / "a.wav", PROVENANCE)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (channels, 8000, 2)
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(samples.shape)
    np.testing.assert_allclose(pcm / 32767, samples.clip(-1, 1), atol=0.6 / 32767)
    soundfile = pytest.importorskip("soundfile")
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert file.frames == 800
        assert file.comment.startswith('{"mmrt"')
    assert is_wav(tmp_path / "a.wav")
    assert read_provenance(tmp_path / "a.wav") == PROVENANCE


def test_a_sound_is_a_recording() -> None:
    from mmrt.runtime.audio import open_recording

    sound = Sound(wave_of(2), 8000)
    assert sound.seconds == 0.1
    np.testing.assert_array_equal(open_recording(sound, 8000), sound.samples.mean(axis=1))


def test_sounds_of_arrays() -> None:
    array = np.zeros((2, 2, 5), np.float32)
    array[1, :, 3:] = np.nan
    assert [each.samples.shape for each in sounds(array, 8000, np.array([5, 3]))] == [(5, 2), (3, 2)]
    with pytest.raises(BundleError, match="NaN"):
        sounds(array, 8000, None)
    with pytest.raises(BundleError, match="6 samples long, of which there are 5"):
        sounds(array, 8000, np.array([6, 1]))


def test_files_without_provenance(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    Sound(wave_of(1), 8000).save(path)
    whole = path.read_bytes()
    info = b"INFO" + struct.pack("<4sI", b"ICMT", 2**32 - 1) + b"{"
    comments = [b"", b"LIST", b"LIST\xff\xff\xff\xff", b"LIST" + struct.pack("<I", len(info)) + info]
    comments += [b"LIST" + struct.pack("<I", 4 + 8 + len(text)) + b"INFOICMT" + struct.pack("<I", len(text)) + text
                 for text in (b"[1]\0", b"hello\0", b"[" * 10**5)]  # fmt: skip
    for comment in comments:
        path.write_bytes(whole + comment)
        with pytest.raises(RequestError, match=r"a\.wav: says nothing of how it was made"):
            read_provenance(path)
    with pytest.raises(RequestError, match="cannot be read"):
        read_provenance(tmp_path / "missing.wav")
    assert not is_wav(tmp_path / "missing.wav")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be written"):
        Sound(wave_of(1), 8000).save(tmp_path / "missing" / "a.wav")
    assert not list(tmp_path.iterdir())
