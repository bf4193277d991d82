"""A cheap look at latents: a linear map to RGB, fitted to what the real decoder makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Matrix = tuple[tuple[float, float, float], ...]
_RIDGE = 1e-3  # of the latents' variance: keeps channels that never move from getting large weights


def fit_preview(encode: Callable[[Any], Any], decode: Callable[[Any], Any], factor: int, seed: int = 0) -> Matrix:
    """The least-squares matrix (channels + 1, 3) from latents to RGB in [-1, 1], its last row the constant.

    encode: float32 pictures (batch, 3, height, width) in [-1, 1] to latents; decode: back. `factor` is how many
    pixels wide a latent is.
    """
    with torch.no_grad():
        latents = encode(synthetic_pictures(12 * factor, seed))
        pixels = F.avg_pool2d(decode(latents).clamp(-1, 1), factor)
    x = latents.movedim(1, -1).flatten(0, 2).double()
    y = pixels.movedim(1, -1).flatten(0, 2).double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=torch.float64)
    weights = torch.linalg.solve(gram + ridge, x.T @ y)
    rows = torch.cat([weights, (mean_y - mean_x @ weights)[None]]).tolist()
    return tuple((red, green, blue) for red, green, blue in rows)


def synthetic_pictures(side: int, seed: int = 0) -> Any:
    """Eight pictures, float32 (8, 3, side, side) in [-1, 1]: coloured blocks, gradients and discs."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def colours(*shape: int) -> Any:
        return torch.rand(shape, generator=generator) * 2 - 1

    blocks = F.interpolate(colours(3, 3, 4, 4), size=side, mode="nearest")
    smooth = F.interpolate(colours(3, 3, 4, 4), size=side, mode="bicubic").clamp(-1, 1)
    discs = [torch.where(x**2 + y**2 < 0.5, colours(3, 1, 1), colours(3, 1, 1)) for _ in range(2)]
    return torch.cat([blocks, smooth, torch.stack(discs)])
