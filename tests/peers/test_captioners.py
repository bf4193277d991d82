"""Captions and answers of BLIP and GIT are those of transformers' own `generate`, token by token, in fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from checkpoints import exports  # noqa: E402
from picture_checkpoints import CHECKPOINTS, OTHERS, POSITIONS, pictures, written  # noqa: E402
from PIL import Image  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export import families  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime import media  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402

torch.set_num_threads(1)

TEXTS = [
    "a red heart",
    "The quick brown fox jumps over 13 lazy dogs, doesn't it? Le chat dort sur le toit.",
    "",
    "zażółć gęślą",
]
LENGTHS = (1, 31, 70)  # the buffers have 32 places, or 64 at first and then 128
CAPTIONERS = ("BLIP", "GIT")


class Source:
    """transformers' model and processors of a checkpoint, and the bundle that was made of it."""

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        self.checkpoint = checkpoint
        config = json.loads((checkpoint / "config.json").read_text())
        self.kind = config["architectures"][0]
        with quiet():
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
            self.images = transformers.AutoImageProcessor.from_pretrained(checkpoint)
            self.model = getattr(transformers, self.kind).from_pretrained(checkpoint).eval()
        self.pipeline = mmrt.load(bundle, threads=1)
        self.end = self.tokenizer.sep_token_id

    def theirs(self, text: str | None, images: list[Image.Image], **options: Any) -> list[tuple[int, ...]]:
        """Of one text, if any, and some pictures: a batch of several texts would mix padding with their words."""
        encoded: dict[str, Any] = {"pixel_values": self.images(images=images, return_tensors="pt")["pixel_values"]}
        prompt = 1
        if text is not None:
            ids = self.tokenizer([text] * len(images), return_tensors="pt")["input_ids"]
            if self.kind == "GitForCausalLM":
                ids = ids[:, :-1]  # as its documentation says
            encoded |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if self.kind != "BlipForQuestionAnswering":  # BLIP's own `generate` leaves the last token out
                prompt = ids.shape[1] - (self.kind == "BlipForConditionalGeneration")
        with quiet(), torch.no_grad():
            found = self.model.generate(**encoded, **{"do_sample": False, **options})
        return [self._ended(row) for row in found[:, prompt:].tolist()]

    def _ended(self, row: list[int]) -> tuple[int, ...]:
        return tuple(row[: row.index(self.end) + 1] if self.end in row else row)

    def ours(self, images: list[Image.Image], **options: Any) -> list[tuple[int, ...]]:
        return written(self.pipeline, image=images, **options)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    made = exports(tmp_path_factory, lambda folder, name: {**CHECKPOINTS, **OTHERS}[name](folder))
    return cache(lambda name: Source(*made(name)))


@pytest.fixture(params=CHECKPOINTS)
def source(request: pytest.FixtureRequest, sources: Callable[[str], Source]) -> Source:
    return sources(request.param)


# ---------------------------------------------------------------- token by token


@pytest.mark.parametrize("name", [*CHECKPOINTS, *OTHERS])
def test_texts(sources: Callable[[str], Source], name: str) -> None:
    """Prompts of one batch differ in length, and so does what follows; some of it ends early."""
    source = sources(name)
    every, early = set(), 0
    for beams in (1, 4):
        for count in (1, 4):
            for length in LENGTHS:
                images = pictures()[:count]
                found = source.ours(images, text=TEXTS[:count], beams=beams, max_new_tokens=length)
                for text, image, tokens in zip(TEXTS, images, found, strict=False):
                    (wanted,) = source.theirs(text, [image], num_beams=beams, max_new_tokens=length)
                    assert tokens == wanted, (beams, count, length, text)
                every |= {*found}
                early += sum(len(each) < length for each in found)
    assert len(every) > 2
    assert name in OTHERS or early
    assert name in OTHERS or max(len({*tokens}) for tokens in every) > 5


@pytest.mark.parametrize("name", [*CAPTIONERS, *(name for name in OTHERS if "answers" not in name)])
@pytest.mark.parametrize("beams", [1, 4])
def test_without_a_text(sources: Callable[[str], Source], name: str, beams: int) -> None:
    source = sources(name)
    for count in (1, 4):
        for length in LENGTHS:
            images = pictures()[:count]
            found = source.ours(images, beams=beams, max_new_tokens=length)
            assert found == source.theirs(None, images, num_beams=beams, max_new_tokens=length), (count, length)
    assert len({*found}) > 1


def test_one_text_of_many_pictures(source: Source) -> None:
    found = source.ours(pictures(), text=TEXTS[0], beams=1, max_new_tokens=10)
    assert found == source.theirs(TEXTS[0], pictures(), max_new_tokens=10)
    assert len({*found}) > 1


def test_one_picture_with_many_texts(source: Source) -> None:
    """It is encoded once."""
    found = source.ours(pictures()[:1], text=TEXTS, beams=1, max_new_tokens=10)
    assert found == [source.theirs(text, pictures()[:1], max_new_tokens=10)[0] for text in TEXTS]
    assert len({*found}) > 1


def test_defaults_are_the_checkpoints(source: Source) -> None:
    """But for the length, which transformers leaves at 20 tokens in all."""
    found = source.ours(pictures(), text=TEXTS[0], max_new_tokens=12)
    assert found == source.theirs(TEXTS[0], pictures(), max_new_tokens=12)


def test_rules(source: Source) -> None:
    """They hold for the prompt too, but the picture's places are no tokens."""
    found = source.ours(
        pictures(), text=TEXTS[1], repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=9, max_new_tokens=40
    )
    assert found == source.theirs(
        TEXTS[1], pictures(), repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=9, max_new_tokens=40
    )


def test_up_to_the_models_room(source: Source) -> None:
    """All positions are used: the text's start from 0 whatever the picture takes."""
    options: dict[str, Any] = {"max_new_tokens": POSITIONS - 1, "min_new_tokens": POSITIONS - 1}
    found = source.ours(pictures()[:2], text="", beams=1, **options)
    assert found == source.theirs("", pictures()[:2], num_beams=1, **options)
    assert {len(each) for each in found} == {POSITIONS - 1}


def test_words_are_transformers(source: Source) -> None:
    texts = source.pipeline.generate(TEXTS[0], image=pictures(), beams=1, max_new_tokens=20).texts
    tokens = source.theirs(TEXTS[0], pictures(), max_new_tokens=20)
    assert texts == source.tokenizer.batch_decode([list(each) for each in tokens], skip_special_tokens=True)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [(170, 50), (47, 133), (13, 20), (96, 96), (1, 300), (301, 2), (1, 1), (90, 45)])
def test_pixels_are_the_processors(source: Source, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (*size[::-1], 3), np.uint8))
    spec = source.pipeline.manifest.inputs["image"]
    assert isinstance(spec, mmrt.runtime.manifest.Image)
    assert spec.fit is not None
    found = media.fit(image, spec.fit)
    wanted = source.images(images=[image], return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
    difference = found.astype(np.int64) - np.asarray(wanted[0]).transpose(1, 2, 0)
    assert np.abs(difference).max() <= 1


# ---------------------------------------------------------------- what is refused


def test_errors(sources: Callable[[str], Source]) -> None:
    with pytest.raises(RequestError, match="image is missing"):
        sources("GIT").pipeline.generate()
    with pytest.raises(RequestError, match="text is missing"):
        sources("BLIP, answers").pipeline.generate(image=pictures()[0])
    for name in CHECKPOINTS:
        with pytest.raises(RequestError, match="are allowed"):
            sources(name).pipeline.generate("many words " * 200, image=pictures()[0])
    for name in CAPTIONERS:
        with pytest.raises(RequestError, match="the model has room for"):
            sources(name).pipeline.generate("many words " * 10, image=pictures()[0], max_new_tokens=POSITIONS - 1)


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("GIT", "config.json", {"num_image_with_embedding": 6}, "num_image_with_embedding is 6; a model of videos"),
        ("GIT", "preprocessor_config.json", {"crop_size": {"height": 30, "width": 30}}, "30x30, wanted 32x32"),
        ("BLIP", "preprocessor_config.json", {"size": {"height": 32, "width": 48}}, "48x32, wanted 48x48"),
        ("BLIP, answers", "preprocessor_config.json", {"do_resize": False}, "do_resize is false"),
    ],
)
def test_checkpoints_that_are_refused(
    sources: Callable[[str], Source], tmp_path: Path, name: str, file: str, change: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sources(name).checkpoint, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    checkpoint = Checkpoint(folder)
    with pytest.raises(ExportError, match=message):
        families.find(checkpoint).recipe(checkpoint)
