"""Measure the CLIP: how many names find their own picture among all, and whether it keeps the better drawings.

    mmrt export checkpoint -o clip.mmrt
    python measure.py clip.mmrt                                       # among the training pictures
    python measure.py clip.mmrt --drawings dalle.mmrt --temperature 2 # and among drawings

A name is right where the nearest picture counts as one with its own: where they differ in the direction alone ("person
running facing right"), or are the same to the pixel. A drawing is right where it is nearest to such a picture by the
mean squared error of its pixels, which CLIP does not see: it only says which of them are kept.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import mmrt
from mmrt.runtime.similarity import ranked

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
import data


def main() -> None:
    """Print a table: what was asked, of how many, how many are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="checkpoint as `mmrt export` makes it")
    parser.add_argument("--pictures", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--names", type=Path, default=Path("emojibase-data-17.0.0.tgz"))
    parser.add_argument("--drawings", type=Path, help="examples/dalle/checkpoint, exported: what draws")
    parser.add_argument("--temperature", type=float, default=1.0, help="of its codes")
    parser.add_argument("--count", type=int, default=100, help="how many names are drawn")
    parser.add_argument("--each", type=int, default=8, help="drawings of a name")
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    emoji, pictures = data.read_packages(args.pictures, args.names)
    same, clip = data.counting_as(emoji, pictures), mmrt.load(args.clip)
    seen = embed(clip, image=list(pictures))
    for language in data.LANGUAGES:
        texts = [getattr(row, language) for row in emoji]
        nearest = (embed(clip, text=texts) @ seen.T).argmax(axis=1)
        found = [emoji[place] in wanted for place, wanted in zip(nearest, same, strict=True)]
        exact = [texts[place] == text for place, text in zip(nearest, texts, strict=True)]
        print(
            f"{language:8} names {len(texts):5}  right {np.mean(found):6.1%}  exact {np.mean(exact):6.1%}", flush=True
        )
    if args.drawings is None:
        return
    painter, every, kept, possible = mmrt.load(args.drawings), [], [], []
    for number in random.Random(args.seed).sample(range(len(emoji)), args.count):
        drawn = painter.generate(
            emoji[number].english, num_images=args.each, seed=args.seed, temperature=args.temperature
        )
        best = ranked(drawn, clip, "prompt", args.keep)
        for result, right in ((drawn, every), (best, kept)):
            right += [emoji[place] in same[number] for place in nearest_pixels(result.images, pictures)]
        possible.append(min(sum(every[-args.each :]), args.keep) / args.keep)
    print(f"drawn    {len(every):5}  right {np.mean(every):6.1%}")
    print(f"kept     {len(kept):5}  right {np.mean(kept):6.1%}, of {np.mean(possible):.1%} possible")


def nearest_pixels(drawn: Sequence[object], pictures: np.ndarray) -> np.ndarray:
    """Of uint8 `pictures` (emoji, 64, 64, 3), which is nearest to each that is drawn."""
    made, known = (np.stack(each).reshape(len(each), -1).astype(np.float32) for each in (drawn, pictures))
    return ((known**2).sum(axis=1) - 2 * made @ known.T).argmin(axis=1)


def embed(pipeline: mmrt.Pipeline, batch: int = 64, **inputs: list[object]) -> np.ndarray:
    """float32 (items, width) of the one input that is given."""
    ((name, items),) = inputs.items()
    parts = [items[first : first + batch] for first in range(0, len(items), batch)]
    return np.concatenate([pipeline.generate(**{name: part}).embeddings for part in parts])


if __name__ == "__main__":
    main()
