"""Measure what a checkpoint knows: draw names, and see which emoji of the data each picture is nearest to.

    python measure.py checkpoint --pictures emoji-datasource-google-16.0.0.tgz --names emojibase-data-17.0.0.tgz

A picture is right where the nearest emoji (mean squared error of the pixels, among all 1,906) bears the name that was
asked for. The same name with another direction ("person running facing right" for "person running") counts as right,
and so does an emoji whose picture is the same to the pixel (some flags); `exact` counts neither of the two.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import data
import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

Pictures = npt.NDArray[np.uint8]


def draw(pipeline: StableDiffusionPipeline, prompts: list[str], args: argparse.Namespace) -> Iterator[Pictures]:
    """One picture, uint8 (64, 64, 3), for every prompt; number i is drawn with seed `args.seed + i`."""
    for first in range(0, len(prompts), args.batch):
        part = prompts[first : first + args.batch]
        seeds = [torch.Generator().manual_seed(args.seed + first + i) for i in range(len(part))]
        made = pipeline(part, num_inference_steps=args.steps, guidance_scale=args.guidance, generator=seeds)
        yield from (np.asarray(image) for image in made.images)


def nearest(pictures: Pictures, known: Pictures) -> npt.NDArray[np.int64]:
    """The index of the known picture nearest to each of `pictures`, (n, 64, 64, 3), by mean squared error."""
    made, kept = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (pictures, known))
    return ((kept**2).sum(1) - 2 * made @ kept.T).argmin(1)


def same(emoji: list[data.Emoji], known: Pictures, a: int, b: int) -> bool:
    """Whether two emoji bear one name but for the direction, or share one picture."""
    direction = " facing right"
    one, other = (emoji[i].english.removesuffix(direction) for i in (a, b))
    return one == other or bool((known[a] == known[b]).all())


def sheet(path: Path, made: list[Pictures], wanted: list[Pictures], columns: int = 20) -> None:
    """Save pictures in rows, each row above the row of what was wanted."""
    rows = []
    for first in range(0, len(made), columns):
        for pictures in (made, wanted):
            part = pictures[first : first + columns]
            rows.append(np.concatenate(part + [np.full_like(part[0], 255)] * (columns - len(part)), axis=1))
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    """Print a table: language, how many are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pictures", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--names", type=Path, default=Path("emojibase-data-17.0.0.tgz"))
    parser.add_argument("--count", type=int, default=200, help="how many names")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of names and of the noise")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="save what was drawn, LANGUAGE.png in this folder")
    parser.add_argument("--misses", action="store_true", help="print what was taken for what")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    emoji, known = data.read_packages(args.pictures, args.names)
    chosen = random.Random(args.seed).sample(range(len(emoji)), args.count)
    pipeline = StableDiffusionPipeline.from_pretrained(args.checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    print(f"{args.count} of {len(emoji)} names, seed {args.seed}, {args.steps} steps, guidance {args.guidance:g}")
    print("language  right   exact   mean error of a pixel (0 to 255)")
    for column, language in enumerate(data.LANGUAGES, start=1):
        made = list(draw(pipeline, [emoji[i][column] for i in chosen], args))
        found = nearest(np.stack(made), known)
        right = [same(emoji, known, i, int(j)) for i, j in zip(chosen, found, strict=True)]
        error = np.abs(np.stack(made).astype(float) - known[chosen]).mean()
        print(f"{language:9} {np.mean(right):6.1%}  {np.mean(found == chosen):6.1%}  {error:6.1f}", flush=True)
        if args.misses:
            for i, j, good in zip(chosen, found, right, strict=True):
                if not good:
                    print(f"  {emoji[i][column]} ({emoji[i].english}) -> {emoji[j].english}")
        if args.sheet:
            args.sheet.mkdir(parents=True, exist_ok=True)
            sheet(args.sheet / f"{language}.png", made, list(known[chosen]))


if __name__ == "__main__":
    main()
