"""How near Swin2SR in tiles comes to the whole picture, at real sizes with random weights.

    python benchmarks/tiles.py lightweight
    python benchmarks/tiles.py classical --gain 1

Convolutions' random weights are made `--gain` times as large: a pixel then sees farther than with transformers' own.
"""

from __future__ import annotations

import argparse
import itertools
from types import SimpleNamespace

import numpy as np
import torch
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from mmrt.export.families.swin2sr import _OVERLAP, _TILE, Upscaler
from mmrt.runtime import tiles

NETWORKS = {
    "lightweight": {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "upsampler": "pixelshuffledirect"},
    "classical": {"embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6, "upsampler": "pixelshuffle"},
}
WINDOW = 8


def main() -> None:
    """Print the peak signal-to-noise ratio of what tiles make, against the whole, in dB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--width", type=int, default=_TILE + _OVERLAP)
    parser.add_argument("--height", type=int, default=40)
    parser.add_argument("--tile", type=int, default=_TILE)
    parser.add_argument("--gain", type=float, default=4.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = Swin2SRConfig(window_size=WINDOW, mlp_ratio=2.0, upscale=2, **NETWORKS[args.network])
    model = Swin2SRForImageSuperResolution(config).eval()
    for weights in model.parameters():
        if weights.ndim == 4:
            weights.data.mul_(args.gain)
    upscaler = Upscaler(model, SimpleNamespace(do_rescale=True, rescale_factor=1 / 255), WINDOW).eval()
    scale = upscaler.scale
    rough = torch.rand(1, 3, args.height // 8 + 1, args.width // 8 + 1)
    smooth = torch.nn.functional.interpolate(rough, (args.height, args.width), mode="bicubic")
    picture = (smooth.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    down, across = (tiles.spans(length, args.tile, _OVERLAP, WINDOW) for length in (args.height, args.width))
    with torch.no_grad():
        whole = upscaler(picture).numpy()
        strips = []
        for y in down:
            made = [(x, upscaler(picture[:, y.start : y.stop, x.start : x.stop]).numpy()) for x in across]
            strips.append((y, tiles.joined(made, args.width, scale, axis=2)))
    tiled = tiles.joined(strips, args.height, scale, axis=1)
    error = (tiled.astype(np.float32) - whole) ** 2
    common = [(scale * after.start, scale * before.stop) for before, after in itertools.pairwise(across)]
    seams = np.concatenate([error[:, :, first:last].ravel() for first, last in common])
    size = sum(weights.numel() for weights in model.parameters()) / 1e6
    print(
        f"{args.network}, {size:.1f} M, {args.width} x {args.height}, {len(down) * len(across)} tiles of {args.tile}: "
        f"{psnr(error):.1f} dB, where tiles overlap {psnr(seams):.1f} dB, at most {error.max() ** 0.5:.0f} of 255"
    )


def psnr(error: np.ndarray) -> float:
    """Of squared errors of pixels in [0, 255]."""
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-9)))


if __name__ == "__main__":
    main()
