"""Sound out: samples and their rate, and WAV files that say what made them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mmrt.runtime.arrays import AnyArray, Float32
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.files import whole
from mmrt.version import __version__

_COMMENT, _SOFTWARE = b"ICMT", b"ISFT"  # of a RIFF file's INFO list
_LONGEST = 1 << 24  # bytes of a comment
_LARGEST = (1 << 32) - 1  # bytes of a RIFF file


class Sound(NamedTuple):
    """`samples`, float32 (samples,), or (samples, channels), in [-1, 1], and the `rate` of them a second.

    It is also what an input of kind `audio` takes.
    """

    samples: Float32
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    def save(self, path: str | os.PathLike[str], provenance: dict[str, Any] | None = None) -> None:
        """Write a WAV file, see `save_wav`."""
        save_wav(self, path, provenance)


def sounds(array: AnyArray, rate: int, lengths: AnyArray | None) -> list[Sound]:
    """Float32 (batch, samples), or (batch, channels, samples), as sounds, each of its own length where there are
    `lengths`, int64 (batch,). Raises `BundleError` for what is none."""
    sizes = [array.shape[-1]] * len(array) if lengths is None else lengths.tolist()
    for row, size in zip(array, sizes, strict=True):
        if not 0 <= size <= array.shape[-1]:
            raise BundleError(f"a sound is {size} samples long, of which there are {array.shape[-1]}")
        if not np.isfinite(row[..., :size]).all():
            raise BundleError("a sound has samples that are NaN or infinite")
    return [
        Sound(np.ascontiguousarray(row[..., :size].T, np.float32), rate) for row, size in zip(array, sizes, strict=True)
    ]


def save_wav(sound: Sound, path: str | os.PathLike[str], provenance: dict[str, Any] | None = None) -> None:
    """Write a WAV file of 16-bit PCM whole or not at all, `provenance` as a comment in it.

    Louder samples than 1 are cut. Raises `RequestError` if it cannot be written.
    """
    channels = 1 if sound.samples.ndim == 1 else sound.samples.shape[1]
    pcm = np.rint(np.clip(sound.samples, -1, 1) * np.float32(32767)).astype("<i2")
    frame = 2 * channels
    chunks = [
        _chunk(b"fmt ", struct.pack("<HHIIHH", 1, channels, sound.rate, sound.rate * frame, frame, 16)),
        _chunk(b"data", pcm.tobytes()),
    ]
    if provenance is not None:
        comment = json.dumps(provenance)  # in ASCII, as INFO names no encoding
        entries = {_SOFTWARE: f"mmrt {__version__}", _COMMENT: comment}
        listed = (_chunk(name, text.encode() + b"\0") for name, text in entries.items())
        chunks.append(_chunk(b"LIST", b"INFO" + b"".join(listed)))
    if (size := 4 + sum(map(len, chunks))) > _LARGEST:
        raise RequestError(f"{os.fspath(path)}: {size:,} bytes are more than a WAV file can hold")
    with whole(path) as file:
        file.write_bytes(b"".join((struct.pack("<4sI4s", b"RIFF", size, b"WAVE"), *chunks)))


def is_wav(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as a WAV file does."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[:4] == b"RIFF" and head[8:] == b"WAVE"


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_wav` wrote. Raises `RequestError` where the WAV file has none."""
    try:
        with open(path, "rb") as file:
            file.seek(12)
            comments = [text for name, text in _information(file) if name == _COMMENT]
    except OSError as error:
        raise RequestError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from None
    for comment in comments:
        try:
            found = json.loads(comment.rstrip(b"\0"))
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    raise RequestError(f"{os.fspath(path)}: says nothing of how it was made (no readable comment of mmrt in it)")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack("<4sI", name, len(content)) + content + bytes(len(content) % 2)


def _information(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The entries of INFO lists among the chunks from here on; what is cut short or too long is passed over."""
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"LIST" and 4 <= size <= _LONGEST:
            content = file.read(size + size % 2)
            if content[:4] == b"INFO":
                yield from _entries(content[4:size])
        else:
            file.seek(size + size % 2, os.SEEK_CUR)


def _entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        yield name, content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
