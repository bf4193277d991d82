"""Measure the translator: how many of the Chinese names it gives to the letter, greedily.

    python measure.py checkpoint

No two emoji of the data share a name in either language, so there is one right answer to each name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import learning
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
import data


def main() -> None:
    """Print how many are right: names as they stand in the data, and without punctuation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--names", type=Path, default=Path(__file__).parent.parent / "emoji" / "names.tsv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--misses", action="store_true", help="print what was made of what")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    emoji = data.read_names(args.names)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    model = AutoModelForSeq2SeqLM.from_pretrained(args.checkpoint)
    bare = [row for row in emoji if len(data.spellings(row.english)) > 1]
    for title, rows, spelling in (("names", emoji, 0), ("without punctuation", bare, -1)):
        asked = [data.spellings(row.english)[spelling] for row in rows]
        said = learning.answers(model, tokenizer, **tokenizer(asked, padding=True, return_tensors="pt"))
        missed = [(row, text) for row, text in zip(rows, said, strict=True) if text != row.chinese]
        print(f"{title}: {1 - len(missed) / len(rows):.1%} of {len(rows)} right", flush=True)
        for row, text in missed if args.misses else []:
            print(f"  {row.english} ({row.chinese}) -> {text}")


if __name__ == "__main__":
    main()
