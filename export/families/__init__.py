"""The model families that can be exported, one file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.families import (
    blip,
    captioning,
    clip,
    dalle,
    git,
    janus,
    musicgen,
    open_clip,
    sentence,
    seq2seq,
    stable_diffusion,
    swin2sr,
    vision_language,
    vits,
    whisper,
)
from mmrt.export.recipe import Recipe
from mmrt.runtime.errors import ExportError


class Family(NamedTuple):
    """Whether a checkpoint is of the family, the recipe for it, and the checkpoints' classes, for people."""

    claims: Callable[[Checkpoint], bool]
    recipe: Callable[[Checkpoint], Recipe]
    classes: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "stable-diffusion": Family(stable_diffusion.claims, stable_diffusion.recipe, stable_diffusion.CLASSES),
    "seq2seq": Family(seq2seq.claims, seq2seq.recipe, seq2seq.CLASSES),
    "captioning": Family(captioning.claims, captioning.recipe, captioning.CLASSES),
    "blip": Family(blip.claims, blip.recipe, blip.CLASSES),
    "clip": Family(clip.claims, clip.recipe, clip.CLASSES),
    "open-clip": Family(open_clip.claims, open_clip.recipe, open_clip.CLASSES),
    "sentence": Family(sentence.claims, sentence.recipe, sentence.CLASSES),
    "git": Family(git.claims, git.recipe, git.CLASSES),
    "dalle": Family(dalle.claims, dalle.recipe, dalle.CLASSES),
    "vision-language": Family(vision_language.claims, vision_language.recipe, vision_language.CLASSES),
    "janus": Family(janus.claims, janus.recipe, janus.CLASSES),
    "swin2sr": Family(swin2sr.claims, swin2sr.recipe, swin2sr.CLASSES),
    "musicgen": Family(musicgen.claims, musicgen.recipe, musicgen.CLASSES),
    "vits": Family(vits.claims, vits.recipe, vits.CLASSES),
    "whisper": Family(whisper.claims, whisper.recipe, whisper.CLASSES),
}


def find(checkpoint: Checkpoint) -> Family:
    """The family that a checkpoint is of. Raises `ExportError` that says what was found and what is supported."""
    for family in FAMILIES.values():
        if family.claims(checkpoint):
            return family
    if checkpoint.kind == "diffusers":
        file, found = "model_index.json", f"_class_name is {checkpoint.index.get('_class_name')!r}"
    else:
        file, found = "config.json", f"architectures is {checkpoint.index.get('architectures')!r}"
    supported = ", ".join(name for family in FAMILIES.values() for name in family.classes)
    raise ExportError(f"{checkpoint.path / file}: {found}, supported are {supported}")
