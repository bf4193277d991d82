"""Measure what a bundle knows: draw names, and see which emoji of the data each picture is nearest to.

    mmrt export checkpoint -o dalle.mmrt
    python measure.py dalle.mmrt --pictures emoji-datasource-google-16.0.0.tgz --names emojibase-data-17.0.0.tgz

A picture is right where the nearest emoji (mean squared error of the pixels, among all 1,906) bears the name that was
asked for. The same name with another direction ("person running facing right" for "person running") counts as right,
and so does an emoji whose picture is the same to the pixel (some flags); `exact` counts neither of the two.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import mmrt

sys.path.append(str(Path(__file__).resolve().parent.parent / "emoji"))
import data

Pictures = npt.NDArray[np.uint8]


def draw(pipeline: mmrt.Pipeline, prompts: list[str], args: argparse.Namespace) -> Pictures:
    """Pictures, uint8 (prompts, 64, 64, 3); number i is drawn with seed `args.seed + i`."""
    made = []
    for first in range(0, len(prompts), args.batch):
        part = prompts[first : first + args.batch]
        result = pipeline.generate(part, guidance=args.guidance, temperature=args.temperature, seed=args.seed + first)
        made += [np.asarray(image) for image in result.images]
    return np.stack(made)


def nearest(pictures: Pictures, known: Pictures) -> npt.NDArray[np.int64]:
    """The index of the known picture nearest to each of `pictures`, (n, 64, 64, 3), by mean squared error."""
    made, kept = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (pictures, known))
    return ((kept**2).sum(1) - 2 * made @ kept.T).argmin(1)


def same(emoji: list[data.Emoji], known: Pictures, a: int, b: int) -> bool:
    """Whether two emoji bear one name but for the direction, or share one picture."""
    one, other = (emoji[i].english.removesuffix(" facing right") for i in (a, b))
    return one == other or bool((known[a] == known[b]).all())


def main() -> None:
    """Print how many are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--names", type=Path, default=Path("emojibase-data-17.0.0.tgz"))
    parser.add_argument("--count", type=int, default=200, help="how many names")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of names and of the codes")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="save what was drawn, above what was asked for, as this PNG")
    parser.add_argument("--misses", action="store_true", help="print what was taken for what")
    args = parser.parse_args()
    emoji, known = data.read_packages(args.pictures, args.names)
    chosen = random.Random(args.seed).sample(range(len(emoji)), args.count)
    made = draw(mmrt.load(args.bundle, threads=args.threads), [emoji[i].english for i in chosen], args)
    found = nearest(made, known)
    right = [same(emoji, known, i, int(j)) for i, j in zip(chosen, found, strict=True)]
    error = np.abs(made.astype(float) - known[chosen]).mean()
    print(f"{args.count} of {len(emoji)} names, guidance {args.guidance:g}, temperature {args.temperature:g}")
    print(f"right {np.mean(right):.1%}, exact {np.mean(found == chosen):.1%}, mean error of a pixel {error:.1f} of 255")
    for i, j, good in zip(chosen, found, right, strict=True):
        if args.misses and not good:
            print(f"  {emoji[i].english} -> {emoji[j].english}")
    if args.sheet:
        rows = [np.concatenate([*each[first : first + 20]], axis=1)
                for first in range(0, args.count - args.count % 20, 20) for each in (made, known[chosen])]  # fmt: skip
        Image.fromarray(np.concatenate(rows)).save(args.sheet)


if __name__ == "__main__":
    main()
