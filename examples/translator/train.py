"""Train a small T5 to give the Chinese names of emoji for the English ones.

    python train.py --minutes 13 --work work --checkpoint checkpoint

Goes on from WORK where it is started again; writes the checkpoint at the end, and on the way with `--save-every`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import learning
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
import data

LENGTH = 32  # tokens of a name at most


def new_model(vocabulary: int) -> T5ForConditionalGeneration:
    """T5 of width 192: three layers that read, two that write."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=192,
        d_kv=48,
        num_heads=4,
        d_ff=512,
        num_layers=3,
        num_decoder_layers=2,
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        pad_token_id=learning.PAD,
        eos_token_id=learning.EOS,
        decoder_start_token_id=learning.PAD,
    )
    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=LENGTH,
        pad_token_id=learning.PAD,
        eos_token_id=learning.EOS,
        decoder_start_token_id=learning.PAD,
    )
    return model


class Pairs:
    """The names as ids: the English ones as they are and without punctuation, and the Chinese ones."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, emoji: list[data.Emoji]) -> None:
        spellings = [row.english for row in emoji] + [data.spellings(row.english)[-1] for row in emoji]
        ids = tokenizer(spellings, padding=True, return_tensors="pt")["input_ids"]
        self.english = torch.stack([*ids[: len(emoji)].expand(3, -1, -1), ids[len(emoji) :]])
        self.chinese = learning.labels(tokenizer, [row.chinese for row in emoji])

    def draw(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch, padded no longer than it needs; one time in four without punctuation."""
        english = self.english[torch.randint(len(self.english), rows.shape), rows]
        english = english[:, : int((english != learning.PAD).sum(1).max())]
        chinese = self.chinese[rows]
        chinese = chinese[:, : int((chinese != learning.IGNORED).sum(1).max())]
        return {
            "input_ids": english,
            "attention_mask": (english != learning.PAD).long(),
            "labels": chinese.contiguous(),
        }


def main() -> None:
    """Train for the minutes given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=Path, default=Path(__file__).parent.parent / "emoji" / "names.tsv")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the training state is kept")
    parser.add_argument("--minutes", type=float, default=13, help="of processor time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint"))
    parser.add_argument("--save-every", type=float, default=5, metavar="MINUTES")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    emoji = data.read_names(args.names)
    texts = [text for row in emoji for text in (*data.spellings(row.english), row.chinese)]
    tokenizer = learning.kept_tokenizer(args.checkpoint, texts, size=2800)
    model, pairs = new_model(len(tokenizer)), Pairs(tokenizer, emoji)
    saved = time.monotonic()
    steps = learning.schedule(
        args.work / "translator.pt", model, minutes=args.minutes, batch=64, examples=len(emoji), lr=2e-3
    )
    for batch in steps:
        batch.step(model(**pairs.draw(batch.rows)).loss)
        if time.monotonic() - saved > 60 * args.save_every:
            learning.save_checkpoint(args.checkpoint, model, tokenizer)
            saved = time.monotonic()
    learning.save_checkpoint(args.checkpoint, model, tokenizer)


if __name__ == "__main__":
    main()
