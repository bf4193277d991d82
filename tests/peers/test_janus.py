"""Janus' pictures are those of transformers' own `generate`: the same codes, and pixels to 40 dB and more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from checkpoints import export_bundle, export_half  # noqa: E402
from vision_language_checkpoints import JANUS, janus  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.families import janus as family  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime.bundle import Bundle  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402
from mmrt.runtime.events import Token  # noqa: E402
from mmrt.runtime.receipt import read_receipt  # noqa: E402

torch.set_num_threads(1)

TEXTS = ["a red heart", "The quick brown fox doesn't jump over 13 lazy dogs, does it?", "", "Zażółć, 你好！ 👍🏾"]  # noqa: RUF001
COUNT, CODES = 64, 96


class Source:
    """transformers' model of a checkpoint, and the bundle that was made of it."""

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        with quiet():
            self.processor = transformers.JanusProcessor(
                transformers.AutoImageProcessor.from_pretrained(checkpoint), _tokenizer(checkpoint)
            )
            self.model = transformers.JanusForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.checkpoint = checkpoint
        self.pipeline = mmrt.load(bundle, threads=1)

    def theirs(self, texts: list[str], scale: float) -> Any:
        """The codes (batch, codes)."""
        chats = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
        template = self.processor.tokenizer.chat_template
        with quiet(), torch.no_grad():
            prompts = [
                self.processor.apply_chat_template(chat, chat_template=template, add_generation_prompt=True)
                for chat in chats
            ]
            encoded = self.processor(text=prompts, generation_mode="image", padding=True, return_tensors="pt")
            encoded = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            return self.model.generate(**encoded, generation_mode="image", do_sample=False, guidance_scale=scale)

    def pixels(self, codes: Any) -> Any:
        """uint8 (batch, height, width, 3)."""
        with torch.no_grad():
            planes = self.model.decode_image_tokens(codes).permute(0, 3, 1, 2).numpy()
        found = [self.processor.image_processor.postprocess([each])["pixel_values"][0] for each in planes]
        return np.stack(found).transpose(0, 2, 3, 1)


def _tokenizer(checkpoint: Path) -> Any:
    """With the names that Janus' own gives its tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.boi_token, tokenizer.eoi_token, tokenizer.image_token = "<begin_of_image>", "</s>", "<image_placeholder>"
    return tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        return janus(tmp_path_factory.mktemp("janus") / "checkpoint")


@pytest.fixture(scope="module")
def source(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(checkpoint, export_bundle(checkpoint, tmp_path_factory.mktemp("janus") / "bundle.mmrt"))


@pytest.fixture(scope="module", params=JANUS)
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("janus")
    with quiet():
        checkpoint = JANUS[request.param](folder / "checkpoint")
    return Source(checkpoint, export_bundle(checkpoint, folder / "bundle.mmrt"))


@pytest.mark.parametrize("scale", [1.5, 3.0, 8.0])
def test_codes_and_pixels(each: Source, scale: float) -> None:
    """Each text by itself, and all of them at once, whose prompts differ in length."""
    wanted = torch.cat([each.theirs([text], scale) for text in TEXTS])
    assert torch.equal(each.theirs(TEXTS, scale), wanted)
    assert len({tuple(row) for row in wanted.tolist()}) > 1
    for texts in ([text] for text in TEXTS):
        found = each.pipeline.arrays(prompt=texts, guidance=scale, temperature=0.0)["sequences"]
        assert np.array_equal(found, wanted[TEXTS.index(texts[0])][None])
    arrays = each.pipeline.arrays(prompt=TEXTS, guidance=scale, temperature=0.0)
    assert np.array_equal(arrays["sequences"], wanted)
    error = np.mean((arrays["pixels"].astype(np.float64) - each.pixels(wanted)) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-6)) > 40
    assert arrays["pixels"].std() > 10


@pytest.mark.parametrize("each", ["Janus, 32 pixels"], indirect=True)
def test_in_fp16_a_code_may_be_another_where_it_was_not_clear(each: Source, tmp_path: Path) -> None:
    """And of two pictures, that of the golden codes is compared."""
    bundle = Bundle(export_half(each.checkpoint, each.pipeline.bundle.path, tmp_path / "half.mmrt"))
    checks = {check.what: check for check in read_receipt(bundle).checks if check.precision == "fp16"}
    assert all(check.passed for check in checks.values())
    parted = checks["greedy: sequences, every step rounded"]
    assert parted.margin is not None
    assert parted.margin < 0.01
    assert (checks["greedy: pixels, every step rounded"].psnr or 0) > 40


def test_guidance_changes_the_picture(source: Source) -> None:
    """And without it there are no unconditional rows."""
    found = [source.pipeline.arrays(prompt=TEXTS[0], guidance=scale)["sequences"] for scale in (1.0, 3.0, 8.0)]
    assert len({tuple(each[0]) for each in found}) == 3


def test_pictures_and_their_tokens(source: Source) -> None:
    """A drawn picture is the seed's; its codes are told as they come."""
    result = source.pipeline.generate(TEXTS[:2], temperature=1.0, num_images=2, seed=3)
    assert [image.size for image in result.images] == [(16, 16)] * 4
    assert len({image.tobytes() for image in result.images}) == 4
    for image, provenance in zip(result.images, result.provenance, strict=True):
        assert source.pipeline.generate(**provenance["request"]).image.tobytes() == image.tobytes()
    events = [each for each in source.pipeline.stream(TEXTS[0]) if isinstance(each, Token)]
    assert len(events) == COUNT
    assert all(each.id is not None and each.id < CODES for each in events)


def test_what_a_bundle_offers(source: Source) -> None:
    defaults = {name: getattr(spec, "default", None) for name, spec in source.pipeline.manifest.inputs.items()}
    assert defaults["guidance"] == 3.0
    assert defaults["temperature"] == 0.0
    with pytest.raises(RequestError, match="tokens, at most"):
        source.pipeline.generate("many words " * 100)
    with pytest.raises(RequestError, match="size is 32x32"):
        source.pipeline.generate("a", size="32x32")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("generation_config.json", {"generation_kwargs": {}}, "boi_token_id is None"),
        ("generation_config.json", {"pad_token_id": None}, "pad_token_id is None"),
        ("generation_config.json", {"bos_token_id": 7}, "wanted 7 as the first"),
    ],
)
def test_checkpoints_that_are_refused(
    checkpoint: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ExportError, match=message):
        family.recipe(Checkpoint(folder))
