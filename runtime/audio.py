"""Recordings in: files and arrays of any rate to one channel of float32 samples in [-1, 1]."""

from __future__ import annotations

import math
import operator
import os
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from mmrt.runtime.arrays import AnyArray, Float32
from mmrt.runtime.errors import RequestError

Recording: TypeAlias = "str | os.PathLike[str] | AnyArray | tuple[AnyArray, int]"
_RATES = range(1000, 1_000_001)
_MAX_BYTES = 1 << 32  # of samples in memory


def open_recording(source: Recording, rate: int) -> Float32:
    """A recording as float32 (samples,) at `rate` a second; channels are averaged.

    `source` is a file, an array (samples,) or (samples, channels) of floats or int16 at `rate`, or a pair of such an
    array and its own rate. Raises `RequestError`.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        samples, own_rate = _read(name)
    else:
        name = "a recording"
        array, own_rate = source if isinstance(source, tuple) and len(source) == 2 else (source, rate)
        samples = _samples(array)
    try:
        own_rate = operator.index(own_rate)
    except TypeError:
        raise RequestError(f"{name}: its rate is {own_rate!r}, wanted a whole number of samples a second") from None
    if own_rate not in _RATES:
        raise RequestError(
            f"{name}: its rate is {own_rate}, wanted {_RATES.start} to {_RATES.stop - 1} samples a second"
        )
    if not samples.size:
        raise RequestError(f"{name}: has no samples")
    if not np.isfinite(samples).all():
        raise RequestError(f"{name}: has samples that are NaN or infinite")
    mono = samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples
    return np.ascontiguousarray(mono if own_rate == rate else _resample(mono, own_rate, rate), np.float32)


def fill(samples: Float32, length: int) -> Float32:
    """`samples` with silence after them, (length,)."""
    return np.pad(samples, (0, length - len(samples)))


def _read(path: str) -> tuple[Float32, int]:
    """Float32 (samples, channels), and how many of them are a second."""
    if not os.path.exists(path):
        raise RequestError(f"{path}: no such file")
    soundfile = _library("soundfile")
    try:
        with soundfile.SoundFile(path) as file:
            if (size := 4 * file.frames * file.channels) > _MAX_BYTES:
                raise RequestError(f"{path}: unpacks to {size:,} bytes, more than {_MAX_BYTES:,}")
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except RequestError:
        raise
    except Exception as error:  # the decoders of damaged files raise whatever comes
        raise RequestError(f"{path}: not a recording that can be read: {error}") from None


def _samples(array: Any) -> Float32:
    if (
        not isinstance(array, np.ndarray)
        or array.ndim not in (1, 2)
        or (array.dtype != np.int16 and array.dtype.kind != "f")
    ):
        what = f"{array.dtype}{array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise RequestError(
            f"a recording is {what}, wanted a file, an array (samples,) or (samples, channels) of floats or int16, "
            "or a pair of such an array and its rate"
        )
    scale = np.float32(1 / 32768) if array.dtype == np.int16 else np.float32(1)
    return array.astype(np.float32) * scale


def _resample(samples: Float32, own_rate: int, rate: int) -> Float32:
    if not (found := _library("soxr").resample(samples, own_rate, rate)).size:
        raise RequestError(f"a recording of {len(samples)} samples at {own_rate} a second is too short")
    resampled: Float32 = found
    return resampled


def _library(name: str) -> ModuleType:
    """Imported when first needed: bundles that hear nothing do without."""
    try:
        return __import__(name)
    except (ImportError, OSError) as error:
        raise RequestError(f"recordings need the package {name!r}: pip install 'mmrt[audio]' ({error})") from None


def seconds(samples: int, rate: int) -> str:
    """A duration for people, rounded up so that a little too long is not shown as just right."""
    return f"{math.ceil(samples / rate * 10) / 10:g} s"
