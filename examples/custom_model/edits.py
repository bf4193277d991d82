"""The data: emoji, prompts that change them, and what each prompt makes of a picture.

    npm pack emoji-datasource-google@16.0.0

A prompt is a move ("mirror it"), a look ("make it blue"), or both in either order ("make it blue and mirror it").
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent / "emoji"))
import data

LENGTH = 12  # words of a prompt
Edit = Callable[
    [Tensor], Tensor
]  # of ink (pictures, 3, 64, 64) in [0, 1], which is 1 - RGB: 0 where a picture is white


def paint(red: float, green: float, blue: float) -> Edit:
    """White stays white, and what is dark takes the colour."""
    missing = 1 - torch.tensor([red, green, blue]).view(3, 1, 1)
    return lambda ink: (ink.mean(1, keepdim=True) + ink.amax(1, keepdim=True)) / 2 * missing


MOVES: dict[str, Edit] = {
    "mirror it": lambda ink: ink.flip(3),
    "turn it upside down": lambda ink: ink.flip(2),
    "make it small": lambda ink: F.pad(F.avg_pool2d(ink, 2), [16] * 4),
    "make it big": lambda ink: F.interpolate(ink[:, :, 16:48, 16:48], scale_factor=2, mode="bilinear"),
}
LOOKS: dict[str, Edit] = {
    "make it red": paint(0.85, 0, 0.1),
    "make it green": paint(0, 0.5, 0.1),
    "make it blue": paint(0, 0.2, 0.9),
    "make it purple": paint(0.5, 0, 0.7),
    "make it grey": paint(0, 0, 0),
    "make it pale": lambda ink: 0.4 * ink,
    "blur it": lambda ink: F.avg_pool2d(ink, 7, 1, 3),
}
BOTH = [(move, look) for move in MOVES for look in LOOKS]
PROMPTS: dict[str, tuple[Edit, ...]] = {
    **{name: (edit,) for name, edit in (MOVES | LOOKS).items()},
    **{f"{move} and {look}": (MOVES[move], LOOKS[look]) for move, look in BOTH},
    **{f"{look} and {move}": (LOOKS[look], MOVES[move]) for move, look in BOTH},
}
WORDS = ["", "?", *sorted(set(" ".join(PROMPTS).split()))]  # the first fills prompts up, the second is any other word


def new_tokenizer() -> Tokenizer:
    """Words of lower case to their places in `WORDS`."""
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="?"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return made


def ids(prompts: list[str]) -> Tensor:
    """int64 (prompts, 12), filled up with 0."""
    encode = new_tokenizer().encode
    return torch.tensor([(encode(prompt).ids + [0] * LENGTH)[:LENGTH] for prompt in prompts])


def read(package: Path) -> tuple[Tensor, Tensor]:
    """Pictures to learn from, uint8 (emoji, 64, 64, 3), and every tenth emoji, which are not learnt."""
    _, pictures = data.read_pictures(package)
    kept = torch.arange(len(pictures)) % 10 == 5
    found = torch.tensor(pictures)
    return found[~kept], found[kept]


def apply(prompt: str, pictures: Tensor) -> Tensor:
    """What uint8 (pictures, 64, 64, 3) become, float32 (pictures, 3, 64, 64) in [0, 1]."""
    ink = 1 - pictures.permute(0, 3, 1, 2) / 255
    for edit in PROMPTS[prompt]:
        ink = edit(ink)
    return 1 - ink


def sample(pictures: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of `count` prompts, twice each; other pictures for all of them; what these become."""
    prompts = [list(PROMPTS)[place] for place in torch.randperm(len(PROMPTS))[:count]]
    before = pictures[torch.randint(len(pictures), (count, 2))]
    after = torch.cat([apply(prompt, each) for prompt, each in zip(prompts, before, strict=True)])
    return ids(prompts).repeat_interleave(2, 0), before.flatten(0, 1), after
