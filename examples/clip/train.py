"""Train a small CLIP on pictures of emoji and their English and Chinese names, the emoji example's drawings among them.

    npm pack emoji-datasource-google@16.0.0 emojibase-data@17.0.0
    python ../captioner/draw.py emoji.mmrt --work work    # may go on while this trains: read when two thirds are over
    python train.py --minutes 30 --work work --checkpoint checkpoint

Goes on from WORK where it is started again; writes the checkpoint at the end, and on the way with `--save-every`.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
sys.path.append(str(Path(__file__).parent.parent / "translator"))
sys.path.append(str(Path(__file__).parent.parent / "captioner"))
import data
import learning
from pictures import Pictures

LENGTH = 32  # tokens of a text at most
WIDTH = 128  # of the vectors
SEEN, NAMED = 96, 256  # pictures and names of a step


def new_model(vocabulary: int) -> CLIPModel:
    """Texts by two layers of width 160, pictures as 16 patches of 16 x 16 by three of width 192; vectors of 128."""
    shared = {"num_attention_heads": 4, "projection_dim": WIDTH}
    text = {"vocab_size": vocabulary, "hidden_size": 160, "intermediate_size": 480, "num_hidden_layers": 2}
    ids = {"bos_token_id": learning.PAD, "eos_token_id": learning.EOS, "pad_token_id": learning.PAD}
    seen = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3}
    return CLIPModel(
        CLIPConfig(
            text_config={**text, **ids, **shared, "max_position_embeddings": LENGTH},
            vision_config={**seen, **shared, "image_size": data.SIZE, "patch_size": 16},
            projection_dim=WIDTH,
        )
    )


def new_processor() -> CLIPImageProcessorPil:
    """Pictures of any size -> (batch, 3, 64, 64) in [-1, 1]."""
    size = {"height": data.SIZE, "width": data.SIZE}
    return CLIPImageProcessorPil(size=size, do_center_crop=False, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class Learner(nn.Module):
    """The model, and a vector of each emoji that its pictures and its names learn to meet, thrown away afterwards.

    So a picture or a name is told from all emoji at once, not only from those that are in its batch, and names, which
    cost little, can be learnt more often than pictures.
    """

    def __init__(self, model: CLIPModel, emoji: int) -> None:
        super().__init__()
        self.model = model
        self.vectors = nn.Parameter(torch.randn(emoji, WIDTH))

    def loss(self, pictures: Tensor, seen: Tensor, ids: Tensor, mask: Tensor, named: Tensor) -> Tensor:
        """Pictures (batch, 3, 64, 64) in [-1, 1] of the emoji `seen`; names of the emoji `named`, `seen` first."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(50))
        scale, vectors = self.model.logit_scale.exp(), F.normalize(self.vectors, dim=-1)
        images = F.normalize(self.model.get_image_features(pictures).pooler_output, dim=-1)
        texts = F.normalize(self.model.get_text_features(ids, attention_mask=mask).pooler_output, dim=-1)
        whole = F.cross_entropy(scale * images @ vectors.T, seen) + F.cross_entropy(scale * texts @ vectors.T, named)
        pairs, own = scale * images @ texts[: len(seen)].T, torch.arange(len(seen))
        return whole + (F.cross_entropy(pairs, own) + F.cross_entropy(pairs.T, own)) / 2


def main() -> None:
    """Train for the minutes given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--names", type=Path, default=Path("emojibase-data-17.0.0.tgz"))
    parser.add_argument("--work", type=Path, default=Path("work"), help="where drawn pictures and the state are kept")
    parser.add_argument("--minutes", type=float, default=30, help="of processor time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint"))
    parser.add_argument("--save-every", type=float, default=5, metavar="MINUTES")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    emoji, originals = data.read_packages(args.pictures, args.names)
    names = [[*data.spellings(row.english), *data.spellings(row.chinese)] for row in emoji]
    tokenizer = learning.kept_tokenizer(args.checkpoint, [text for row in names for text in row], size=3000)
    new_processor().save_pretrained(args.checkpoint)
    learner = Learner(new_model(len(tokenizer)), len(emoji))
    pictures, saved = Pictures(originals, args.work), time.monotonic()
    steps = learning.schedule(
        args.work / "clip.pt", learner, minutes=args.minutes, batch=SEEN, examples=len(emoji), lr=1e-3
    )
    for batch in steps:
        named = torch.cat([batch.rows, torch.randint(len(emoji), (NAMED - SEEN,))])
        texts = [random.choice(names[row]) for row in named.tolist()]
        ids = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        seen = pictures.batch(batch.rows, batch.over)
        batch.step(learner.loss(seen, batch.rows, ids["input_ids"], ids["attention_mask"], named))
        if time.monotonic() - saved > 60 * args.save_every:
            learning.save_checkpoint(args.checkpoint, learner.model, tokenizer)
            saved = time.monotonic()
    learning.save_checkpoint(args.checkpoint, learner.model, tokenizer)


if __name__ == "__main__":
    main()
