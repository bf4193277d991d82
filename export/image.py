"""A transformers image processor as the manifest's `Fit`, which the runtime does, and a module for the graph."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from mmrt.runtime import manifest as m
from mmrt.runtime.errors import ExportError

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


def fit(processor: Any) -> m.Fit:
    """How the processor brings pictures to size. Raises `ExportError` where it does more than resize and crop."""
    for field, does in _NOT.items():
        if getattr(processor, field, False):
            raise ExportError(
                f"preprocessor_config.json: {field} is true; an image processor that {does} is not supported"
            )
    if not processor.do_resize:
        raise ExportError("preprocessor_config.json: do_resize is false, wanted true: pictures come in any size")
    size = dict(processor.size)
    resample: Any = Image.Resampling(processor.resample).name.lower()
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    if size.get("shortest_edge") and crop:
        return m.Fit(width=crop["width"], height=crop["height"], resample=resample, shortest=size["shortest_edge"])
    if size.get("height") and size.get("width") and crop in (None, {key: size[key] for key in ("height", "width")}):
        return m.Fit(width=size["width"], height=size["height"], resample=resample)
    raise ExportError(f"preprocessor_config.json: size {size} with crop_size {crop} is not supported")
