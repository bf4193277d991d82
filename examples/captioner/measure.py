"""Measure the captioner: how many names it reads off the pictures, and off what the emoji example draws of them.

    python measure.py checkpoint                                    # the training pictures
    python measure.py checkpoint --bundle emoji.mmrt                # and the chain of the three examples

Answers are greedy and must be right to the letter. Two emoji count as one where they differ in the direction alone
("person running facing right"), or where their pictures are the same to the pixel (some flags and families, 24 emoji in
all); `exact` counts neither of the two.

The chain, over names and with noise drawn from `--seed`: an English name is drawn and read again; a Chinese name is
drawn, read in English, and translated. The Chinese name is right where it is the Chinese name of an emoji that counts
as one with the one asked for.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, VisionEncoderDecoderModel, ViTImageProcessor

import mmrt

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
sys.path.append(str(Path(__file__).parent.parent / "translator"))
import data
import learning

EXAMPLES = Path(__file__).parent.parent
ENGLISH, CHINESE = 1, 2  # columns of an emoji


class Captioner:
    """Pictures -> English names."""

    def __init__(self, checkpoint: Path) -> None:
        self.processor = ViTImageProcessor.from_pretrained(checkpoint)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = VisionEncoderDecoderModel.from_pretrained(checkpoint)

    def __call__(self, pictures: list[Image.Image]) -> list[str]:
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return learning.answers(self.model, self.tokenizer, pixel_values=pixels)


class Translator:
    """English names -> Chinese names."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)

    def __call__(self, names: list[str]) -> list[str]:
        return learning.answers(self.model, self.tokenizer, **self.tokenizer(names, padding=True, return_tensors="pt"))


def draw(pipeline: mmrt.Pipeline, prompts: list[str], args: argparse.Namespace, batch: int = 20) -> list[Image.Image]:
    """One picture a prompt; number i is drawn with seed `args.seed + i`."""
    made = []
    for first in range(0, len(prompts), batch):
        part, seed = prompts[first : first + batch], args.seed + first
        made += pipeline.generate(part, seed=seed, guidance=args.guidance, steps=args.steps).images
    return made


def tell(title: str, said: list[str], wanted: list[list[data.Emoji]], column: int, misses: bool) -> None:
    """Print a line of the table, and what was missed."""
    right = [text in [row[column] for row in rows] for text, rows in zip(said, wanted, strict=True)]
    exact = [text == rows[0][column] for text, rows in zip(said, wanted, strict=True)]
    print(f"{title:26} {len(said):5}  {np.mean(right):6.1%}  {np.mean(exact):6.1%}", flush=True)
    for text, rows, good in zip(said, wanted, right, strict=True):
        if misses and not good:
            print(f"  {rows[0][column]} -> {text}")


def main() -> None:
    """Print a table: what was read, of how many, how many are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pictures", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--names", type=Path, default=Path("emojibase-data-17.0.0.tgz"))
    parser.add_argument("--bundle", type=Path, help="examples/emoji/checkpoint as `mmrt export` makes it")
    parser.add_argument("--translator", type=Path, default=EXAMPLES / "translator" / "checkpoint")
    parser.add_argument("--count", type=int, default=200, help="how many names go through the chain")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of names and of the noise")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--misses", action="store_true", help="print what was read instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    emoji, pictures = data.read_packages(args.pictures, args.names)
    same, captioner = data.counting_as(emoji, pictures), Captioner(args.checkpoint)
    print(f"{'':26} names  right   exact")
    tell("training pictures", captioner([Image.fromarray(p) for p in pictures]), same, ENGLISH, args.misses)
    if args.bundle is None:
        return
    pipeline, translator = mmrt.load(args.bundle, threads=args.threads), Translator(args.translator)
    chosen = random.Random(args.seed).sample(range(len(emoji)), args.count)
    wanted = [same[i] for i in chosen]
    read = captioner(draw(pipeline, [emoji[i].english for i in chosen], args))
    tell("English, drawn, read", read, wanted, ENGLISH, args.misses)
    read = captioner(draw(pipeline, [emoji[i].chinese for i in chosen], args))
    tell("Chinese, drawn, read", read, wanted, ENGLISH, args.misses)
    tell("..., translated", translator(read), wanted, CHINESE, args.misses)


if __name__ == "__main__":
    main()
