"""Train a small vision encoder-decoder to name pictures of emoji, the emoji example's own drawings among them.

    npm pack emoji-datasource-google@16.0.0 emojibase-data@17.0.0
    python draw.py emoji.mmrt --work work        # may go on while this trains: read when two thirds of it are over
    python train.py --minutes 40 --work work --checkpoint checkpoint

Goes on from WORK where it is started again; writes the checkpoint at the end, and on the way with `--save-every`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
sys.path.append(str(Path(__file__).parent.parent / "translator"))
import data
import learning
from pictures import Pictures

WIDTH = 192
LENGTH = 32  # tokens of a caption at most


def new_model(vocabulary: int) -> VisionEncoderDecoderModel:
    """ViT, 64 patches of 8 x 8, three layers; GPT-2 with cross attention, two layers."""
    shape = {"num_attention_heads": 4, "intermediate_size": 512, "hidden_size": WIDTH}
    encoder = ViTConfig(image_size=data.SIZE, patch_size=8, num_hidden_layers=3, **shape)
    ids = {"bos_token_id": learning.PAD, "eos_token_id": learning.EOS, "pad_token_id": learning.PAD}
    decoder = GPT2Config(
        vocab_size=vocabulary,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        n_inner=512,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        add_cross_attention=True,
        is_decoder=True,
        **ids,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.update(ids | {"decoder_start_token_id": learning.PAD})
    model = VisionEncoderDecoderModel(config)
    model.generation_config = GenerationConfig(max_length=LENGTH, decoder_start_token_id=learning.PAD, **ids)
    return model


def new_processor() -> ViTImageProcessor:
    """Pictures of any size -> (batch, 3, 64, 64) in [-1, 1]."""
    return ViTImageProcessor(
        size={"height": data.SIZE, "width": data.SIZE}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


class Learner(nn.Module):
    """The model and a head that it is trained with and that nobody needs afterwards.

    The head reads from the mean of the encoder's tokens which emoji it is, which the encoder learns faster from than
    from the decoder's words.
    """

    def __init__(self, model: VisionEncoderDecoderModel, emoji: int) -> None:
        super().__init__()
        self.model = model
        self.which = nn.Linear(WIDTH, emoji)

    def loss(self, pictures: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """Pictures (batch, 3, 64, 64) in [-1, 1], which emoji they are, and their names as ids."""
        made = self.model(pixel_values=pictures, labels=labels)
        scores = self.which(made.encoder_last_hidden_state.mean(1))
        return made.loss + 0.5 * F.cross_entropy(scores, rows)


def main() -> None:
    """Train for the minutes given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--names", type=Path, default=Path("emojibase-data-17.0.0.tgz"))
    parser.add_argument("--work", type=Path, default=Path("work"), help="where drawn pictures and the state are kept")
    parser.add_argument("--minutes", type=float, default=40, help="of processor time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint"))
    parser.add_argument("--save-every", type=float, default=5, metavar="MINUTES")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    emoji, originals = data.read_packages(args.pictures, args.names)
    tokenizer = learning.kept_tokenizer(args.checkpoint, [row.english for row in emoji], size=1800)
    new_processor().save_pretrained(args.checkpoint)
    learner = Learner(new_model(len(tokenizer)), len(emoji))
    pictures, names = Pictures(originals, args.work), learning.labels(tokenizer, [row.english for row in emoji])
    saved = time.monotonic()
    steps = learning.schedule(
        args.work / "captioner.pt", learner, minutes=args.minutes, batch=32, examples=len(emoji), lr=1e-3
    )
    for batch in steps:
        labels = names[batch.rows]
        labels = labels[:, : int((labels != learning.IGNORED).sum(1).max())]
        batch.step(learner.loss(pictures.batch(batch.rows, batch.over), batch.rows, labels))
        if time.monotonic() - saved > 60 * args.save_every:
            learning.save_checkpoint(args.checkpoint, learner.model, tokenizer)
            saved = time.monotonic()
    learning.save_checkpoint(args.checkpoint, learner.model, tokenizer)


if __name__ == "__main__":
    main()
