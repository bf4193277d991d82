"""Vectors of texts and pictures are those of transformers' own models and processors, and fit as these say."""

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

from checkpoints import export_half, exports  # noqa: E402
from clip_checkpoints import CLASSES, LENGTH, save  # noqa: E402
from picture_checkpoints import pictures  # noqa: E402
from PIL import Image  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.families import clip  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402
from mmrt.runtime.receipt import replay  # noqa: E402
from mmrt.runtime.similarity import score  # noqa: E402

torch.set_num_threads(1)

TEXTS = ["a red heart", "The quick brown fox jumps over 13 lazy dogs, doesn't it?", "", "你好, 红心", "x"]


class Source:
    """transformers' model and processors of a checkpoint, and the bundle that was made of it."""

    def __init__(self, kind: str, checkpoint: Path, bundle: Path) -> None:
        self.kind, self.checkpoint, self.bundle = kind, checkpoint, bundle
        with quiet():
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
            self.images = transformers.AutoImageProcessor.from_pretrained(checkpoint)
            self.model = getattr(transformers, CLASSES[kind]).from_pretrained(checkpoint).eval()
        self.pipeline = mmrt.load(bundle, threads=1)

    def theirs(self, texts: list[str], images: list[Image.Image]) -> Any:
        sigmoid = self.kind.startswith("SigLIP")
        padding = "max_length" if sigmoid else True
        encoded = self.tokenizer(texts, padding=padding, max_length=LENGTH, truncation=True, return_tensors="pt")
        mask = {} if sigmoid else {"attention_mask": encoded["attention_mask"]}
        pixels = self.images(images=images, return_tensors="pt")
        with torch.no_grad():
            return self.model(input_ids=encoded["input_ids"], **pixels, **mask)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    made = exports(tmp_path_factory, save)
    return cache(lambda kind: Source(kind, *made(kind)))


@pytest.fixture(params=CLASSES)
def source(request: pytest.FixtureRequest, sources: Callable[[str], Source]) -> Source:
    return sources(request.param)


def same(found: Any, wanted: Any) -> None:
    """Vectors of length 1 that point the same way."""
    wanted = wanted.numpy()
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * wanted).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_vectors(source: Source) -> None:
    """Of one and of many, whose lengths and sizes differ."""
    wanted = source.theirs(TEXTS, pictures())
    same(source.pipeline.generate(TEXTS).embeddings, wanted.text_embeds)
    same(source.pipeline.generate(image=pictures()).embeddings, wanted.image_embeds)
    for text, vector in zip(TEXTS, wanted.text_embeds, strict=True):
        same(source.pipeline.generate(text).embeddings, vector[None])
    same(source.pipeline.generate(image=pictures()[1]).embeddings, wanted.image_embeds[1:2])
    assert min(np.linalg.norm(a - b) for a in wanted.text_embeds[:3] for b in wanted.text_embeds[3:]) > 0.01
    repeated = source.pipeline.generate([*TEXTS, TEXTS[0]]).embeddings
    assert np.array_equal(repeated[-1], repeated[0])


def test_many_texts(sources: Callable[[str], Source]) -> None:
    """Those of like length are computed together."""
    source = sources("Chinese CLIP")
    texts = ["红心" * (place % 9) + str(place) for place in range(45)]
    same(source.pipeline.generate(texts).embeddings, source.theirs(texts, pictures()[:1]).text_embeds)


def test_both_at_once(source: Source) -> None:
    wanted = source.theirs(TEXTS[:4], pictures())
    outputs = source.pipeline.generate(TEXTS[:4], image=pictures()).outputs
    same(np.stack(outputs["text_embeds"]), wanted.text_embeds)
    same(np.stack(outputs["image_embeds"]), wanted.image_embeds)


def test_scores(source: Source) -> None:
    wanted = source.theirs(TEXTS, pictures())
    found = score(source.pipeline, TEXTS, pictures())
    np.testing.assert_allclose(found.similarities, (wanted.image_embeds @ wanted.text_embeds.T).numpy(), atol=1e-4)
    logits = wanted.logits_per_image
    probabilities = torch.sigmoid(logits) if source.kind.startswith("SigLIP") else logits.softmax(dim=-1)
    np.testing.assert_allclose(found.probabilities, probabilities.numpy(), atol=1e-4)


def test_in_fp16_norms_of_vectors_add_up_in_fp32(sources: Callable[[str], Source], tmp_path: Path) -> None:
    source = sources("CLIP")
    bundle = export_half(source.checkpoint, source.pipeline.bundle.path, tmp_path / "half.mmrt")
    half = mmrt.load(bundle, precision="fp16")
    checks = list(replay(half))
    assert all(check.passed for check in checks)
    assert {check.precision for check in checks} == {"fp16"}
    for graph in half.manifest.graphs.values():
        assert {island.op: island.reason for island in graph.variants[1].islands} == {"ReduceL2": "accumulation"}
        assert graph.variants[1].dtypes == {}


def test_what_is_refused(sources: Callable[[str], Source]) -> None:
    pipeline = sources("CLIP").pipeline
    with pytest.raises(RequestError, match="nothing is given: bundle takes text or image"):
        pipeline.generate()
    with pytest.raises(RequestError, match=f"at most {LENGTH} are allowed"):
        pipeline.generate("many words " * 100)
    with pytest.raises(RequestError, match="text is 3"):
        pipeline.generate(text=3)


def test_checkpoints_that_are_refused(sources: Callable[[str], Source], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sources("CLIP").checkpoint, folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"crop_size": {"height": 30, "width": 30}}))
    with pytest.raises(ExportError, match="pictures become 30x30, wanted 32x32"):
        clip.recipe(Checkpoint(folder))
