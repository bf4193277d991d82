"""Vectors of texts and pictures are those of open_clip's own models, tokenizer and transforms."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("open_clip") is None:  # which imports torchvision too, in whose place others can stand
    pytest.skip("needs open_clip", allow_module_level=True)

from checkpoints import exports  # noqa: E402
from corpus import lines  # noqa: E402
from open_clip_checkpoints import CONFIGS, save  # noqa: E402
from picture_checkpoints import pictures  # noqa: E402
from PIL import Image  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.families import open_clip as family  # noqa: E402
from mmrt.export.open_clip_library import open_clip  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.export.tokenizer import open_clip_tokenizer  # noqa: E402
from mmrt.runtime import media  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402
from mmrt.runtime.similarity import score  # noqa: E402
from mmrt.runtime.tokenizer import Tokenizer  # noqa: E402

torch.set_num_threads(1)

TEXTS = ["a red heart", "The quick brown fox, it&#39;s &amp;amp; 13 lazy dogs", "", "你好, 红心", "x"]
PIXELS = Path(__file__).parent / "open_clip_pixels.npz"


class Source:
    """open_clip's model and tokenizer of a checkpoint, and the bundle that was made of it."""

    def __init__(self, kind: str, checkpoint: Path, bundle: Path) -> None:
        self.kind, self.checkpoint = kind, checkpoint
        with quiet():
            self.model = open_clip().create_model(f"local-dir:{checkpoint}").eval()
            self.tokenizer = open_clip().get_tokenizer(f"local-dir:{checkpoint}")
        self.pipeline = mmrt.load(bundle, threads=1)

    def texts(self, texts: list[str]) -> Any:
        with torch.no_grad():
            return self.model.encode_text(self.tokenizer(texts), normalize=True).numpy()

    def pictures(self, images: list[Image.Image]) -> Any:
        config = self.model.visual.preprocess_cfg
        size, _ = family._pictures(Checkpoint(self.checkpoint), config)
        pixels = torch.from_numpy(np.stack([media.fit(each, size) for each in images])).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
        with torch.no_grad():
            return self.model.encode_image((pixels - mean) / std, normalize=True).numpy()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    made = exports(tmp_path_factory, save)
    return cache(lambda kind: Source(kind, *made(kind)))


@pytest.fixture(params=CONFIGS)
def source(request: pytest.FixtureRequest, sources: Callable[[str], Source]) -> Source:
    return sources(request.param)


def same(found: Any, wanted: Any) -> None:
    assert found.shape == wanted.shape
    assert (found * wanted).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_vectors(source: Source) -> None:
    wanted = source.texts(TEXTS)
    same(source.pipeline.generate(TEXTS).embeddings, wanted)
    same(source.pipeline.generate(TEXTS[1]).embeddings, wanted[1:2])
    assert np.linalg.norm(wanted[0] - wanted[3]) > 0.01
    same(source.pipeline.generate(image=pictures()).embeddings, source.pictures(pictures()))


def test_scores(source: Source) -> None:
    texts, images = source.texts(TEXTS), source.pictures(pictures())
    found = score(source.pipeline, TEXTS, pictures())
    np.testing.assert_allclose(found.similarities, images @ texts.T, atol=1e-4)
    scale, bias = source.model.logit_scale.exp().item(), source.model.logit_bias
    logits = torch.from_numpy(scale * images @ texts.T + (0 if bias is None else bias.item()))
    wanted = logits.softmax(dim=-1) if bias is None else logits.sigmoid()
    np.testing.assert_allclose(found.probabilities, wanted.numpy(), atol=1e-3)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids(clean: str, tmp_path: Path) -> None:
    """Of texts of many scripts, and of those with entities and broken signs; cut where they are too long."""
    theirs = open_clip().SimpleTokenizer(context_length=40, clean=clean)
    content, spec = open_clip_tokenizer(theirs, "text.json", None)
    (tmp_path / "text.json").write_bytes(content)
    mended = [
        "I&#39;m &lt;b&gt;",
        "â€œquotesâ€\x9d and sâ€™il",
        "ﬁne\u00a0blanks",
        "DON'T I'LL we'Ve",
        "a_b __c__",
        "x" * 300,
    ]
    texts = [*mended, *lines(1500, seed=5)]
    with quiet():
        found = Tokenizer(tmp_path / "text.json", spec)(texts)[0]
    wanted = theirs(texts).numpy()
    assert [each for each, a, b in zip(texts, found, wanted, strict=True) if a.tolist() != b.tolist()] == []


def test_pixels() -> None:
    """Those of open_clip's own transforms with torchvision 0.28, which made the file."""
    sides = {"shortest": (11, 11), "longest": (11, 11), "squash": (9, 12)}
    with np.load(PIXELS) as wanted:
        for name in wanted.files:
            mode, interpolation, size = name.split("/")
            width, height = map(int, size.split("x"))
            config = {"size": sides[mode], "interpolation": interpolation, "resize_mode": mode, "fill_color": 7}
            spec, _ = family._pictures(None, {**config, "mean": 0.5, "std": 0.5})  # type: ignore[arg-type]
            picture = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
            assert np.array_equal(media.fit(Image.fromarray(picture), spec), wanted[name]), name


def test_a_text_that_is_too_long(sources: Callable[[str], Source]) -> None:
    with pytest.raises(RequestError, match="at most 24 are allowed"):
        sources("CLIP").pipeline.generate("many words " * 20)
    with pytest.warns(mmrt.RequestWarning, match="was cut"):
        found = sources("sigmoid").pipeline.generate("many words " * 20).embeddings
    same(found, sources("sigmoid").texts(["many words " * 20]))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_cfg.vision_cfg.timm_model_name", "vit_base", "vision_cfg.timm_model_name is 'vit_base'; supported are"),
        ("model_cfg.text_cfg.hf_tokenizer_name", "a/b", "text_cfg.hf_tokenizer_name is 'a/b'"),
        ("model_cfg.multimodal_cfg", {}, "CoCa is not supported"),
        ("model_cfg.text_cfg", 3, "model_cfg.text_cfg is missing"),
        ("model_cfg.embed_dim", 21, "open_clip cannot load it: RuntimeError"),
        ("model_cfg", None, "model_cfg is missing"),
    ],
)
def test_what_is_refused(
    sources: Callable[[str], Source], tmp_path: Path, path: str, value: object, message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sources("CLIP").checkpoint, folder)
    document = json.loads((folder / "open_clip_config.json").read_text())
    *above, last = path.split(".")
    node = document
    for step in above:
        node = node[step]
    node[last] = value
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    with pytest.raises(ExportError, match=re.escape(message)):
        family.recipe(Checkpoint(folder))


def test_weights_that_are_no_numbers(sources: Callable[[str], Source], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "checkpoint"
    shutil.copytree(sources("CLIP").checkpoint, folder)
    file = folder / "open_clip_model.safetensors"
    state = load_file(file)
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, file)
    with pytest.raises(ExportError, match=r"visual\.proj holds NaN"):
        family.recipe(Checkpoint(folder))
    file.unlink()
    with pytest.raises(ExportError, match=r"wanted open_clip_model\.safetensors"):
        family.recipe(Checkpoint(folder))
