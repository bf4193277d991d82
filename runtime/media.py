"""Pictures in and out: files and PIL images to RGB arrays, and PNG files that say what made them."""

from __future__ import annotations

import json
import math
import os
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from mmrt.runtime.arrays import Int64, UInt8
from mmrt.runtime.errors import RequestError
from mmrt.runtime.files import whole
from mmrt.runtime.manifest import Fit, Patches, Split

Picture: TypeAlias = Image.Image
PictureLike: TypeAlias = "Picture | UInt8 | str | os.PathLike[str]"
_TEXT_CHUNK = "mmrt"
_LONGEST = 1 << 16  # pixels of a side after resizing


def open_picture(source: PictureLike) -> Picture:
    """A picture as 8-bit RGB, turned upright, transparency laid on white.

    `source` is a file, a PIL image, or a uint8 array (height, width, 3). Raises `RequestError`.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise RequestError(f"a picture is {source.dtype}{source.shape}, wanted uint8(height, width, 3)")
        return Image.fromarray(source)
    if not isinstance(source, Image.Image | str | os.PathLike):
        raise RequestError(f"a picture is a file, a PIL image or a uint8 array, not {type(source).__name__}")
    name = "a picture" if isinstance(source, Image.Image) else os.fspath(source)
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        with Image.open(source) as picture:
            _check_pixels(picture)
            return _upright_rgb(picture)
    except Image.DecompressionBombError:
        raise RequestError(f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels, too large a picture") from None
    except FileNotFoundError:
        raise RequestError(f"{name}: no such file") from None
    except Exception as error:  # the decoders of damaged files raise whatever comes
        raise RequestError(f"{name}: not a picture that can be read: {error}") from None


def _check_pixels(picture: Picture) -> None:
    limit = Image.MAX_IMAGE_PIXELS  # Pillow itself warns above it, and refuses from twice as many
    if limit is not None and picture.width * picture.height > limit:
        raise Image.DecompressionBombError


def _upright_rgb(picture: Picture) -> Picture:
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def to_array(picture: Picture, width: int, height: int) -> UInt8:
    """uint8 (height, width, 3), resized with the Lanczos filter where the size differs (as diffusers does)."""
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def fit(picture: Picture, spec: Fit) -> UInt8:
    """uint8 (height, width, 3) of the size that `spec` says, as image processors of transformers and open_clip make it
    with Pillow."""
    resample = Image.Resampling[spec.resample.upper()]
    if spec.around is not None:
        return _inside(picture, spec, resample)
    if spec.shortest is None:
        return np.asarray(picture.resize((spec.width, spec.height), resample))
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    size = spec.shortest, int(spec.shortest * long / short)
    if size[1] > _LONGEST:
        raise RequestError(f"a picture of {width}x{height} is too long and thin: its sides are to be like 1:{_LONGEST}")
    pixels = np.asarray(picture.resize(size if width <= height else size[::-1], resample))
    over = pixels.shape[0] - spec.height, pixels.shape[1] - spec.width
    top, left = (round(each / 2) if spec.middle == "rounded" else each // 2 for each in over)
    padded = np.pad(pixels, [(max(-top, 0),) * 2, (max(-left, 0),) * 2, (0, 0)])
    top, left = max(top, 0), max(left, 0)
    return padded[top : top + spec.height, left : left + spec.width]


def _inside(picture: Picture, spec: Fit, resample: Image.Resampling) -> UInt8:
    """As `ResizeKeepRatio(longest=1)` and `CenterCropOrPad` of open_clip."""
    ratio = max(picture.width / spec.width, picture.height / spec.height)
    width, height = (max(round(side / ratio), 1) for side in picture.size)
    found = np.full((spec.height, spec.width, 3), spec.around, np.uint8)
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    found[top : top + height, left : left + width] = np.asarray(picture.resize((width, height), resample))
    return found


def fit_patches(picture: Picture, spec: Patches) -> UInt8:
    """uint8 (height, width, 3) of the size that `spec` says, as transformers' Siglip2ImageProcessor finds it."""
    low, high = 1e-6, 100.0  # the scale, found by halving
    while high - low >= 1e-5:
        middle = (low + high) / 2
        width, height = _whole_patches(picture, middle, spec.size)
        low, high = (middle, high) if width * height <= spec.most * spec.size**2 else (low, middle)
    size = _whole_patches(picture, low, spec.size)
    return np.asarray(picture.resize(size, Image.Resampling[spec.resample.upper()]))


def _whole_patches(picture: Picture, scale: float, patch: int) -> tuple[int, int]:
    width, height = (max(math.ceil(side * scale / patch), 1) * patch for side in picture.size)
    return width, height


def cut(pictures: list[UInt8], spec: Patches) -> tuple[list[UInt8], Int64]:
    """Of each picture its patches, uint8 (most, values), and int64 (pictures, 2), how many rows and columns."""
    found, size = [], spec.size
    shapes = np.array([[side // size for side in picture.shape[:2]] for picture in pictures], np.int64)
    for picture, (rows, columns) in zip(pictures, shapes, strict=True):
        patches = picture.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        found.append(np.pad(patches, [(0, spec.most - len(patches)), (0, 0)]))
    return found, shapes


def fit_split(picture: Picture, spec: Split) -> UInt8:
    """uint8 (rows size, columns size, 3), as transformers' Idefics3ImageProcessor stretches a picture."""
    resample, size = Image.Resampling[spec.resample.upper()], spec.size
    picture = picture.resize(_longest_side(picture, spec.longest), resample)
    width, height = picture.size
    columns = rows = 1
    if spec.cut and width >= height:
        columns = math.ceil(width / size)
        rows = max(math.ceil(int(columns * size / (width / height)) / size), 1)
    elif spec.cut:
        rows = math.ceil(height / size)
        columns = max(math.ceil(int(rows * size * (width / height)) / size), 1)
    return np.asarray(picture.resize((columns * size, rows * size), resample))


def split(picture: UInt8, spec: Split) -> UInt8:
    """The tiles of a picture (rows size, columns size, 3), uint8 (tiles, size, size, 3)."""
    size = spec.size
    rows, columns = (side // size for side in picture.shape[:2])
    if rows == columns == 1:
        return picture[None]
    cut = picture.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    whole = Image.fromarray(picture).resize((size, size), Image.Resampling[spec.resample.upper()])
    return np.concatenate([cut, np.asarray(whole)[None]])


def _longest_side(picture: Picture, longest: int) -> tuple[int, int]:
    """The picture's shape as (width, height) with a longer side of `longest` and a shorter that is even, or 1."""
    ratio = picture.width / picture.height
    short = int(longest / ratio if ratio >= 1 else longest * ratio)
    short = max(short + short % 2, 1)
    return (longest, short) if ratio >= 1 else (short, longest)


def save_png(picture: Picture, path: str | os.PathLike[str], provenance: dict[str, Any] | None = None) -> None:
    """Write a PNG whole or not at all, `provenance` in a text chunk. Raises `RequestError` if it cannot be written."""
    chunks = PngImagePlugin.PngInfo()
    if provenance is not None:
        chunks.add_itxt(_TEXT_CHUNK, json.dumps(provenance, ensure_ascii=False))
    with whole(path) as file:
        picture.save(file, format="PNG", pnginfo=chunks)


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_png` wrote. Raises `RequestError` where the file has none."""
    try:
        with Image.open(path) as picture:
            text = picture.info.get(_TEXT_CHUNK)
    except Exception as error:  # as above
        raise RequestError(f"{os.fspath(path)}: not a picture that can be read: {error}") from None
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RequestError(
            f"{os.fspath(path)}: says nothing of how it was made (no readable {_TEXT_CHUNK!r} text chunk)"
        )
    return found


def sheet(pictures: list[Picture]) -> Picture:
    """The pictures, which have one size, on one nearly square sheet, row by row."""
    width, height = pictures[0].size
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * width, index // columns * height))
    return whole


def coarse_pictures(pixels: UInt8, width: int, height: int) -> list[Picture]:
    """uint8 (batch, h, w, 3) as pictures of (width, height), smoothly enlarged."""
    return [Image.fromarray(each).resize((width, height), Image.Resampling.BILINEAR) for each in pixels]


def pictures(pixels: UInt8) -> list[Picture]:
    """uint8 (batch, height, width, 3) as pictures."""
    return [Image.fromarray(each) for each in pixels]
