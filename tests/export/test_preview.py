"""The linear preview map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import mmrt  # noqa: E402
from mmrt.export.preview import fit_preview, synthetic_pictures  # noqa: E402
from mmrt.runtime.manifest import Diffuse  # noqa: E402


def test_a_linear_decoder_is_found_exactly() -> None:
    mix = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.4, 0.2], [0.1, 0.0, 0.3], [0.0, 0.0, 0.0]])
    inverse = torch.linalg.pinv(mix)

    def encode(rgb: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(rgb, 4) - 0.1
        return torch.einsum("brhw,rc->bchw", small, inverse)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        rgb = torch.einsum("bchw,cr->brhw", latents, mix) + 0.1
        return torch.nn.functional.interpolate(rgb, scale_factor=4)

    matrix = torch.tensor(fit_preview(encode, decode, 4))
    latents = encode(synthetic_pictures(64))
    rgb = torch.einsum("bchw,cr->brhw", latents, matrix[:-1]) + matrix[-1][:, None, None]
    wanted = torch.nn.functional.avg_pool2d(decode(latents), 4)
    assert (rgb - wanted).abs().max() < 0.02


def test_it_beats_the_best_constant(sd1_bundle: Path) -> None:
    """On pictures that the fit has not seen, through the bundle's own graphs."""
    pipeline = mmrt.load(sd1_bundle)
    (stage,) = (stage for stage in pipeline.manifest.program if isinstance(stage, Diffuse))
    assert np.shape(stage.preview) == (5, 3)
    pixels = ((synthetic_pictures(128, seed=9).permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
    noise = np.zeros((len(pixels), 4, 16, 16), np.float32)
    encoded = pipeline.engines["image_encoder"].run({"image_pixels": pixels, "posterior_noise": noise})
    decoded = pipeline.engines["decoder"].run({"latents": encoded["image_latents"]})["pixels"]
    wanted = decoded.reshape(len(pixels), 16, 8, 16, 8, 3).mean((2, 4)) / 127.5 - 1
    *weights, constant = np.asarray(stage.preview)
    found = np.einsum("bchw,cr->bhwr", encoded["image_latents"], weights) + constant
    assert np.square(found - wanted).mean() < np.square(wanted - wanted.mean((0, 1, 2))).mean()
