"""What captioner and CLIP learn from: pictures of emoji, some as the emoji example draws them, some disturbed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
import data

EXAMPLES = Path(__file__).parent.parent


class Pictures:
    """Every emoji as it is, as the emoji example's autoencoder leaves it, and as that example draws it."""

    def __init__(self, pictures: np.ndarray, work: Path) -> None:
        self.work = work
        self.plain = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
        self.decoded = decoded(self.plain)
        self.drawn: list[Tensor] | None = None

    def batch(self, rows: Tensor, over: float) -> Tensor:
        """(rows, 3, 64, 64) in [-1, 1], three in four of them disturbed.

        When two thirds of the time are over: half of them drawn ones, and only two in five disturbed.
        """
        if over > 2 / 3 and self.drawn is None:
            files = sorted(self.work.glob("drawn-*.npy"))
            self.drawn = [torch.from_numpy(np.load(file)).permute(0, 3, 1, 2).contiguous() for file in files]
            print(f"{len(files)} rounds of drawn pictures", flush=True)
        drawn = self.drawn or []
        views = [self.plain, self.decoded, *drawn]
        shares = [0.6, 0.4, *[1 / len(drawn) for _ in drawn]]  # in proportion
        chosen = torch.multinomial(torch.tensor(shares), len(rows), replacement=True).tolist()
        taken = torch.stack([views[view][row] for view, row in zip(chosen, rows.tolist(), strict=True)])
        taken = taken.float() / 127.5 - 1
        share = 0.75 if self.drawn is None else 0.4
        return torch.where(torch.rand(len(rows), 1, 1, 1) < share, disturbed(taken), taken)


@torch.inference_mode()
def decoded(pictures: Tensor) -> Tensor:
    """Pictures, uint8 (emoji, 3, 64, 64), there and back through the autoencoder of the emoji example."""
    vae = AutoencoderKL.from_pretrained(EXAMPLES / "emoji" / "checkpoint" / "vae", torch_dtype=torch.float32)
    parts = [vae.decode(vae.encode(part.float() / 127.5 - 1).latent_dist.mode()).sample for part in pictures.split(64)]
    return ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def disturbed(pictures: Tensor) -> Tensor:
    """Pictures moved by up to 3 px, scaled by up to 6 %, recoloured, blurred and noised a little."""
    count = len(pictures)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape)

    place = torch.zeros(count, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = between(0.94, 1.06)
    place[:, :, 2] = between(-3, 3, 2) * 2 / data.SIZE
    grid = F.affine_grid(place, list(pictures.shape), align_corners=False)
    made = 1 - F.grid_sample(1 - pictures, grid, align_corners=False)  # white comes in from outside
    blurred = F.avg_pool2d(F.pad(made, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    made = torch.lerp(made, blurred, between(0, 0.8, 1, 1, 1))
    made = 1 - (1 - made) * between(0.85, 1.15, 1, 1, 1) * between(0.93, 1.07, 3, 1, 1)
    return (made + between(0, 0.06, 1, 1, 1) * torch.randn_like(made)).clamp(-1, 1)
