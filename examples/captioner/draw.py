"""Draw every name with the emoji bundle, for the captioner to learn from: seeds from 1000, never those of `measure.py`.

    mmrt export ../emoji/checkpoint -o emoji.mmrt
    python draw.py emoji.mmrt --work work

A round is one picture a name in one language, `WORK/drawn-ROUND.npy`, uint8 (emoji, 64, 64, 3); rounds that are there
are not drawn again, so it can be stopped and started.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import mmrt

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
import data

FIRST_SEED = 1000


def draw_round(pipeline: mmrt.Pipeline, names: list[str], seed: int, steps: int, batch: int = 16) -> np.ndarray:
    """One picture a name; number i is drawn with seed `seed + i`."""
    pictures = []
    for first in range(0, len(names), batch):
        part = names[first : first + batch]
        made = pipeline.generate(part, seed=seed + first, guidance=2.0, steps=steps).images
        pictures += [np.asarray(image) for image in made]
    return np.stack(pictures)


def main() -> None:
    """Draw the rounds that are not there yet: English and Chinese in turn, 10 and 20 steps in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work"), help="where to write")
    parser.add_argument("--names", type=Path, default=Path(__file__).parent.parent / "emoji" / "names.tsv")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    emoji = data.read_names(args.names)
    pipeline = mmrt.load(args.bundle, threads=args.threads)
    for number in range(args.rounds):
        path = args.work / f"drawn-{number}.npy"
        if path.exists():
            continue
        names = [row[1 + number % 2] for row in emoji]
        pictures = draw_round(pipeline, names, FIRST_SEED + number * len(emoji), steps=(10, 20)[number // 2 % 2])
        np.save(args.work / "part.npy", pictures)
        (args.work / "part.npy").replace(path)
        print(f"{path}: {len(pictures)} pictures of {data.LANGUAGES[number % 2]} names", flush=True)


if __name__ == "__main__":
    main()
