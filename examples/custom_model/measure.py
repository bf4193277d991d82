"""How near a bundle's pictures of emoji that it has not learnt are to the true edits; and a sheet of some.

    python measure.py emoji-datasource-google-16.0.0.tgz editor.mmrt

"Near" is the PSNR of the pictures as they come out, mean over the emoji.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import edits
import numpy as np
import torch
from PIL import Image

import mmrt

SHOWN = [*edits.MOVES, *edits.LOOKS, "make it blue and mirror it", "make it grey and make it small"]


def psnr(prompt: str, pipeline: mmrt.Pipeline, pictures: torch.Tensor) -> float:
    """The mean over the pictures, in dB."""
    made = np.stack([np.asarray(each) for each in pipeline.generate(prompt, image=list(pictures.numpy())).images])
    true = edits.apply(prompt, pictures).permute(0, 2, 3, 1).numpy()
    errors = ((made / 255 - true) ** 2).mean((1, 2, 3))
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))


def sheet(pipeline: mmrt.Pipeline, pictures: torch.Tensor) -> Image.Image:
    """Each row a picture and what the prompts make of it."""
    rows = []
    for picture in pictures.numpy():
        made = pipeline.generate(SHOWN, image=picture).images
        rows.append(np.concatenate([picture, *map(np.asarray, made)], 1))
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    """Print a table and write sheet.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("bundle", type=Path)
    args = parser.parse_args()
    _, unseen = edits.read(args.package)
    pipeline = mmrt.load(args.bundle)
    found = {prompt: psnr(prompt, pipeline, unseen) for prompt in edits.PROMPTS}
    single = [*edits.MOVES, *edits.LOOKS]
    for prompt in single:
        print(f"{prompt:24}{found[prompt]:6.1f} dB")
    both = [value for prompt, value in found.items() if prompt not in single]
    print(f"{'two at once':24}{np.mean(both):6.1f} dB, from {min(both):.1f} to {max(both):.1f}")
    sheet(pipeline, unseen[:: len(unseen) // 8]).save("sheet.png")


if __name__ == "__main__":
    main()
