"""The model families that can be exported, one file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from transformers.models.auto import modeling_auto

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
    """The recipe for a checkpoint of the family, and the classes that such checkpoints are of."""

    recipe: Callable[[Checkpoint], Recipe]
    classes: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "stable-diffusion": Family(stable_diffusion.recipe, stable_diffusion.CLASSES),
    "seq2seq": Family(seq2seq.recipe, seq2seq.CLASSES),
    "captioning": Family(captioning.recipe, captioning.CLASSES),
    "blip": Family(blip.recipe, blip.CLASSES),
    "clip": Family(clip.recipe, clip.CLASSES),
    "open-clip": Family(open_clip.recipe, open_clip.CLASSES),
    "sentence": Family(sentence.recipe, sentence.CLASSES),
    "git": Family(git.recipe, git.CLASSES),
    "dalle": Family(dalle.recipe, dalle.CLASSES),
    "vision-language": Family(vision_language.recipe, vision_language.CLASSES),
    "janus": Family(janus.recipe, janus.CLASSES),
    "swin2sr": Family(swin2sr.recipe, swin2sr.CLASSES),
    "musicgen": Family(musicgen.recipe, musicgen.CLASSES),
    "vits": Family(vits.recipe, vits.CLASSES),
    "whisper": Family(whisper.recipe, whisper.CLASSES),
}
_MAKES = {  # transformers' tables of classes, and what those make
    "IMAGE_TEXT_TO_TEXT": "texts of pictures",
    "VISUAL_QUESTION_ANSWERING": "texts of pictures",
    "SPEECH_SEQ_2_SEQ": "texts of speech",
    "CTC": "texts of speech",
    "TEXT_TO_SPECTROGRAM": "sounds of texts",
    "TEXT_TO_WAVEFORM": "sounds of texts",
    "SEQ_TO_SEQ_CAUSAL_LM": "texts of texts",
    "IMAGE_TO_IMAGE": "pictures of pictures",
    "CAUSAL_LM": "texts with a decoder alone",
}
_REASONS = {
    "SpeechT5ForTextToSpeech": "its decoder goes on from frames of numbers, with dropout and until a threshold, and "
    "not from tokens",
}


def find(checkpoint: Checkpoint) -> Family:
    """The family that a checkpoint is of. Raises `ExportError` that says what it is and what is supported."""
    for family in FAMILIES.values():
        if checkpoint.architecture in family.classes:
            return family
    supported = [name for family in FAMILIES.values() for name in family.classes]
    if checkpoint.kind == "diffusers":
        file, found = "model_index.json", f"_class_name is {checkpoint.index.get('_class_name')!r}"
    else:
        file, found = "config.json", f"architectures is {checkpoint.index.get('architectures')!r}"
    if (makes := _makes(checkpoint.architecture)) is not None:
        alike = [name for name in supported if _makes(name) == makes]
        reason = _REASONS.get(checkpoint.architecture or "")
        found += f", which makes {makes}{f': {reason}' if reason else ''}"
        if alike:
            raise ExportError(f"{checkpoint.path / file}: {found}; supported of these are {', '.join(alike)}")
        found += ", of which none is supported"
    raise ExportError(f"{checkpoint.path / file}: {found}, supported are {', '.join(supported)}")


def _makes(name: str | None) -> str | None:
    """What models of a class of transformers make; None where that is not known."""
    for table, makes in _MAKES.items():
        classes = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {}).values()
        if any(name == each or (isinstance(each, tuple | list) and name in each) for each in classes):
            return makes
    return None
