"""Answers about pictures are those of transformers' own `generate`, token by token, in fp32."""

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

from checkpoints import export_bundle  # noqa: E402
from picture_checkpoints import pictures, written  # noqa: E402
from PIL import Image  # noqa: E402
from vision_language_checkpoints import CHECKPOINTS, LIMIT  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.families import vision_language  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime import media  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402

torch.set_num_threads(1)

QUESTIONS = [
    "What is it?",
    "The quick brown fox doesn't jump over 13 lazy dogs, does it? Le chat dort sur le toit. And what of the sea?",
    "",
    "Zażółć gęślą jaźń, 你好！ 👍🏾",  # noqa: RUF001
]
LENGTHS = (1, 20, 100)  # the prompts have 30 tokens and more; the buffers 64 places, 128 and 256


class Source:
    """transformers' model and processor of a checkpoint, and the bundle that was made of it.

    SmolVLM's own processor wants packages for videos; for one picture it does as Idefics3's.
    """

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
            self.images = transformers.AutoImageProcessor.from_pretrained(checkpoint)
            self.model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
        self.pipeline = mmrt.load(bundle, threads=1)
        vision, scale = self.model.config.vision_config, self.model.config.scale_factor
        places = (vision.image_size // vision.patch_size // scale) ** 2
        self.processor = transformers.Idefics3Processor(
            self.images, tokenizer, image_seq_len=places, chat_template=tokenizer.chat_template
        )

    def theirs(self, questions: list[str], images: list[Image.Image], **options: Any) -> list[tuple[int, ...]]:
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for question in questions
        ]
        with quiet(), torch.no_grad():
            texts = [self.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
            encoded = self.processor(
                text=texts, images=[[image] for image in images], padding=True, padding_side="left", return_tensors="pt"
            )
            found = self.model.generate(**encoded, **{"do_sample": False, **options})
        return [self._ended(row) for row in found[:, encoded["input_ids"].shape[1] :].tolist()]

    def _ended(self, row: list[int]) -> tuple[int, ...]:
        end = self.model.generation_config.eos_token_id
        return tuple(row[: row.index(end) + 1] if end in row else row)

    def ours(self, questions: list[str], images: list[Image.Image], **options: Any) -> list[tuple[int, ...]]:
        return written(self.pipeline, text=questions, image=images, **options)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    @cache
    def made(name: str) -> Source:
        folder = tmp_path_factory.mktemp("vision")
        with quiet():
            checkpoint = CHECKPOINTS[name](folder / "checkpoint")
        return Source(checkpoint, export_bundle(checkpoint, folder / "bundle.mmrt"))

    return made


@pytest.fixture(params=CHECKPOINTS)
def source(request: pytest.FixtureRequest, sources: Callable[[str], Source]) -> Source:
    return sources(request.param)


def test_greedy_and_beams(source: Source) -> None:
    """Prompts of one batch differ in length, and so do their answers."""
    every, early = set(), 0
    for beams in (1, 4):
        for count in (1, 4):
            for length in LENGTHS:
                given = QUESTIONS[:count], pictures()[:count]
                found = source.ours(*given, beams=beams, max_new_tokens=length)
                assert found == source.theirs(*given, num_beams=beams, max_new_tokens=length), (beams, count, length)
                every |= {*found}
                early += sum(len(each) < length for each in found)
    assert early
    assert len(every) > 3
    assert max(len({*tokens}) for tokens in every) > 3


def test_up_to_the_models_room(source: Source) -> None:
    """The buffers grow twice."""
    most = source.pipeline.manifest.inputs["max_new_tokens"]
    assert isinstance(most, mmrt.runtime.manifest.Int)
    with pytest.raises(RequestError, match=r"room for \d+") as refused:
        source.ours(QUESTIONS[:1], pictures()[:1], max_new_tokens=most.max)
    room = int(str(refused.value).split()[-1])
    given = QUESTIONS[:1], pictures()[:1]
    found = source.ours(*given, beams=1, max_new_tokens=room, min_new_tokens=room)
    assert found == source.theirs(*given, max_new_tokens=room, min_new_tokens=room)
    assert len(found[0]) == room > 128


def test_one_picture_and_many_questions(source: Source) -> None:
    """And one question about many pictures: what is the same is encoded once."""
    found = source.ours(QUESTIONS, pictures()[:1], beams=1, max_new_tokens=10)
    assert found == source.theirs(QUESTIONS, pictures()[:1] * 4, max_new_tokens=10)
    found = source.ours(QUESTIONS[:1], pictures(), beams=1, max_new_tokens=10)
    assert found == source.theirs(QUESTIONS[:1] * 4, pictures(), max_new_tokens=10)
    assert len({*found}) > 1


def test_rules(source: Source) -> None:
    """They hold for the prompt too, but the picture's places are no tokens."""
    found = source.ours(QUESTIONS, pictures(), repetition_penalty=1.3, no_repeat_ngram_size=2, max_new_tokens=40)
    wanted = source.theirs(QUESTIONS, pictures(), repetition_penalty=1.3, no_repeat_ngram_size=2, max_new_tokens=40)
    assert found == wanted


SIZES = [(170, 50), (47, 133), (13, 20), (96, 96), (1, 300), (301, 2), (1, 1), (90, 45), (400, 399), (64, 500)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_the_processors(source: Source, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (*size[::-1], 3), np.uint8))
    spec = source.pipeline.manifest.inputs["image"]
    assert isinstance(spec, mmrt.runtime.manifest.Image)
    assert spec.split is not None
    found = media.split(media.fit_split(image, spec.split), spec.split)
    assert len(found) <= spec.split.most
    wanted = source.images(images=[[image]], return_tensors="np", do_rescale=False, do_normalize=False)
    difference = found.astype(np.int64) - wanted["pixel_values"][0].transpose(0, 2, 3, 1)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("beams", [1, 3])
def test_pictures_of_many_shapes(source: Source, beams: int) -> None:
    """In one batch they have different numbers of tiles, and so the prompts different lengths."""
    noise = np.random.default_rng(1)
    images = [
        Image.fromarray(noise.integers(0, 255, (height, width, 3), np.uint8))
        for width, height in ((170, 50), (47, 133), (96, 96), (301, 2))
    ]
    for count in (1, 4):
        found = source.ours(QUESTIONS[:count], images[:count], beams=beams, max_new_tokens=20)
        assert found == source.theirs(QUESTIONS[:count], images[:count], num_beams=beams, max_new_tokens=20)


def test_errors(sources: Callable[[str], Source]) -> None:
    pipeline = sources("SmolVLM").pipeline
    with pytest.raises(RequestError, match="image is missing"):
        pipeline.generate("What is it?")
    with pytest.raises(RequestError, match=rf"at most {LIMIT - 1} are allowed"):
        pipeline.generate("many words " * 100, image=pictures()[0])
    with pytest.raises(RequestError, match="contains '<image>', which stands for the picture"):
        pipeline.generate("What is <image>?", image=pictures()[0])
    with pytest.raises(RequestError, match="the model has room for"):
        pipeline.generate("many words " * 20, image=pictures()[0], max_new_tokens=LIMIT // 2)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"size": {"longest_edge": 1000}}, "can have 1768 places of the model's 300"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 40}}, "pictures become 40x40, wanted 48x48"),
        ("preprocessor_config.json", {"size": {"height": 50, "width": 50}}, "wanted longest_edge"),
        ("preprocessor_config.json", {"size": {"longest_edge": 5000}}, "wanted at most 4096"),
        ("chat_template.jinja", None, "has no chat template"),
        ("chat_template.jinja", "{{ messages[0]['content'][1]['text'] }}", "picture is not one '<image>'"),
        ("chat_template.jinja", "<image>{{ messages[0]['content'][1]['text'] | upper }}", "does not keep a text"),
        ("chat_template.jinja", "{{ raise_exception('no') }}", "the chat template fails"),
    ],
)
def test_checkpoints_that_are_refused(checkpoint: Path, tmp_path: Path, file: str, change: Any, message: str) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    if change is None:
        (folder / file).unlink()
    elif isinstance(change, str):
        (folder / file).write_text(change)
    else:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ExportError, match=message):
        vision_language.recipe(Checkpoint(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type is 'dynamic'")],
)
def test_text_models_that_are_refused(checkpoint: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=message):
        vision_language.recipe(Checkpoint(folder))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        return CHECKPOINTS["SmolVLM"](tmp_path_factory.mktemp("vision") / "checkpoint")
