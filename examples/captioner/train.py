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

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
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

EXAMPLES = Path(__file__).parent.parent
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


class Pictures:
    """Every emoji as it is, as the emoji example's autoencoder leaves it, and as that example draws it."""

    def __init__(self, pictures: np.ndarray, work: Path) -> None:
        self.work = work
        self.plain = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
        self.decoded = decoded(self.plain)
        self.drawn: list[Tensor] | None = None

    def batch(self, rows: Tensor, over: float) -> Tensor:
        """(rows, 3, 64, 64) in [-1, 1], three in four of them disturbed.

        When two thirds of the time are over: half of them drawn ones, and only two in five disturbed.
        """
        if over > 2 / 3 and self.drawn is None:
            files = sorted(self.work.glob("drawn-*.npy"))
            self.drawn = [torch.from_numpy(np.load(file)).permute(0, 3, 1, 2).contiguous() for file in files]
            print(f"{len(files)} rounds of drawn pictures", flush=True)
        drawn = self.drawn or []
        views = [self.plain, self.decoded, *drawn]
        shares = [0.6, 0.4, *[1 / len(drawn) for _ in drawn]]  # in proportion
        chosen = torch.multinomial(torch.tensor(shares), len(rows), replacement=True).tolist()
        taken = torch.stack([views[view][row] for view, row in zip(chosen, rows.tolist(), strict=True)])
        taken = taken.float() / 127.5 - 1
        share = 0.75 if self.drawn is None else 0.4
        return torch.where(torch.rand(len(rows), 1, 1, 1) < share, disturbed(taken), taken)


@torch.inference_mode()
def decoded(pictures: Tensor) -> Tensor:
    """Pictures, uint8 (emoji, 3, 64, 64), there and back through the autoencoder of the emoji example."""
    vae = AutoencoderKL.from_pretrained(EXAMPLES / "emoji" / "checkpoint" / "vae", torch_dtype=torch.float32)
    parts = [vae.decode(vae.encode(part.float() / 127.5 - 1).latent_dist.mode()).sample for part in pictures.split(64)]
    return ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def disturbed(pictures: Tensor) -> Tensor:
    """Pictures moved by up to 3 px, scaled by up to 6 %, recoloured, blurred and noised a little."""
    count = len(pictures)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape)

    place = torch.zeros(count, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = between(0.94, 1.06)
    place[:, :, 2] = between(-3, 3, 2) * 2 / data.SIZE
    grid = F.affine_grid(place, list(pictures.shape), align_corners=False)
    made = 1 - F.grid_sample(1 - pictures, grid, align_corners=False)  # white comes in from outside
    blurred = F.avg_pool2d(F.pad(made, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    made = torch.lerp(made, blurred, between(0, 0.8, 1, 1, 1))
    made = 1 - (1 - made) * between(0.85, 1.15, 1, 1, 1) * between(0.93, 1.07, 3, 1, 1)
    return (made + between(0, 0.06, 1, 1, 1) * torch.randn_like(made)).clamp(-1, 1)


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
