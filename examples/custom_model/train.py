"""Teach the model of ../custom_model.py to change pictures as prompts say.

    npm pack emoji-datasource-google@16.0.0
    python train.py emoji-datasource-google-16.0.0.tgz

Writes model.safetensors beside this file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

sys.path.append(str(Path(__file__).parent.parent))
import custom_model
import edits


def train(model: nn.ModuleList, pictures: torch.Tensor, steps: int) -> None:
    """AdamW on the mean error of pixels, the learning rate falling as a cosine."""
    text_encoder, image_encoder, fusion, decoder = model
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        ids, before, after = edits.sample(pictures, 16)
        made = decoder.rgb(fusion(text_encoder(ids), image_encoder(before)))
        loss = (made - after).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: mean error {255 * loss:.1f} of 255", flush=True)


def main() -> None:
    """Train for the steps given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = custom_model.new_model()
    learnt, _ = edits.read(args.package)
    train(model, learnt, args.steps)
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_file(weights, custom_model.WEIGHTS)


if __name__ == "__main__":
    main()
