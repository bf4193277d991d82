"""A transformers image processor as the manifest's `Fit`, which the runtime does, and a module for the graph."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from mmrt.export.checkpoint import Checkpoint
from mmrt.runtime import manifest as m
from mmrt.runtime.errors import ExportError

_LONGEST = 4096  # to which the processor limits a side
_NOT = {"do_pad": "pads", "do_image_splitting": "splits", "do_thumbnail": "makes thumbnails", "do_align_axis": "turns"}


class Normalize(torch.nn.Module):  # type: ignore[misc]
    """pixels uint8 (pictures, height, width, 3) -> float32 (pictures, 3, height, width), scaled and normalised."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        mean, std = processor.image_mean, processor.image_std
        normal = bool(processor.do_normalize)
        self.scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
        self.register_buffer("mean", torch.tensor(mean if normal else [0.0] * 3)[:, None, None])
        self.register_buffer("std", torch.tensor(std if normal else [1.0] * 3)[:, None, None])

    def forward(self, pixels: Any) -> Any:
        return (pixels.permute(0, 3, 1, 2).float() * self.scale - self.mean) / self.std


class NormalizePatches(torch.nn.Module):  # type: ignore[misc]
    """patches uint8 (pictures, patches, values), values of RGB pixels, and shapes int64 (pictures, 2), their rows and
    columns -> float32 like them, zeros after a picture's own, and int64 (pictures, patches), 1 at those."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.normalize = Normalize(processor)

    def forward(self, patches: Any, shapes: Any) -> Any:
        mask = torch.arange(patches.shape[1]) < shapes.prod(dim=-1, keepdim=True)
        values = self.normalize(patches.unflatten(-1, (-1, 3))).permute(0, 2, 3, 1).flatten(-2)
        return values * mask[:, :, None], mask.to(torch.int64)


def patches(processor: Any, shapes: str) -> m.Patches:
    """How Siglip2ImageProcessor cuts pictures. Raises `ExportError` where it does not."""
    if not processor.do_resize:
        raise ExportError("preprocessor_config.json: do_resize is false, wanted true: pictures come in any size")
    resample: Any = Image.Resampling(processor.resample).name.lower()
    return m.Patches(
        size=int(processor.patch_size), most=int(processor.max_num_patches), resample=resample, shapes=shapes
    )


def fit(processor: Any) -> m.Fit:
    """How the processor brings pictures to size. Raises `ExportError` where it does more than resize and crop."""
    for field, does in _NOT.items():
        if getattr(processor, field, False):
            raise ExportError(
                f"preprocessor_config.json: {field} is true; an image processor that {does} is not supported"
            )
    if not processor.do_resize:
        raise ExportError("preprocessor_config.json: do_resize is false, wanted true: pictures come in any size")
    size = {key: side for key, side in dict(processor.size).items() if side}
    resample: Any = Image.Resampling(processor.resample).name.lower()
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    if size.get("shortest_edge") and crop:
        return m.Fit(width=crop["width"], height=crop["height"], resample=resample, shortest=size["shortest_edge"])
    if size.get("height") and size.get("width") and crop in (None, {key: size[key] for key in ("height", "width")}):
        return m.Fit(width=size["width"], height=size["height"], resample=resample)
    raise ExportError(f"preprocessor_config.json: size {size} with crop_size {crop} is not supported")


def fit_of(checkpoint: Checkpoint, processor: Any, side: int) -> m.Fit:
    """`fit` of a model that sees pictures of `side` times `side` pixels. Raises `ExportError` where they do not become
    so large."""
    found = fit(processor)
    if (found.height, found.width) != (side, side):
        raise ExportError(
            f"{checkpoint.path / 'preprocessor_config.json'}: pictures become {found.width}x{found.height}, wanted "
            f"{side}x{side} as config.json says"
        )
    return found


def split(checkpoint: Checkpoint, processor: Any, side: int) -> m.Split:
    """How Idefics3's processor makes tiles of `side` times `side` pixels. Raises `ExportError` where it does not."""
    file = checkpoint.path / "preprocessor_config.json"
    size = {key: value for key, value in dict(processor.size).items() if value}
    if size.keys() != {"longest_edge"}:
        raise ExportError(f"{file}: size {size} is not supported, wanted longest_edge")
    longest, found = size["longest_edge"], int(dict(processor.max_image_size)["longest_edge"])
    if longest > _LONGEST:
        raise ExportError(f"{file}: longest_edge is {longest}, wanted at most {_LONGEST}")
    if found != side:
        raise ExportError(f"{file}: pictures become {found}x{found}, wanted {side}x{side} as config.json says")
    if not processor.do_resize:
        raise ExportError(f"{file}: do_resize is false, wanted true: pictures come in any size")
    resample: Any = Image.Resampling(processor.resample).name.lower()
    return m.Split(size=side, longest=longest, resample=resample, cut=bool(processor.do_image_splitting))
