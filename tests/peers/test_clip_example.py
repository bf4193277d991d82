"""The trained CLIP example: drawings find their names, in English and Chinese, and the best of several are kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")

from checkpoints import export_bundle

import mmrt
from mmrt.runtime.similarity import ranked, score

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = {
    "english": ["red heart", "pizza", "cat face", "dog face", "blue heart", "rocket"],
    "chinese": ["红心", "披萨", "猫脸", "狗脸", "蓝心", "火箭"],
}
DRAWN = [0, 0, 1, 2]  # of these names, two by two on the emoji example's sheet
KNOWN = [*NAMES["english"], "clock", "star", "umbrella", "tiger face", "banana", "ghost", "flag: japan", "anchor"]


@pytest.mark.parametrize("language", NAMES)
def test_drawings_find_their_names(language: str, clip: mmrt.Pipeline) -> None:
    sheet = np.asarray(Image.open(EXAMPLES / "emoji" / "sheet.png").convert("RGB"))
    drawings = [sheet[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    found = score(clip, NAMES[language], drawings)
    assert found.similarities.argmax(axis=1).tolist() == DRAWN
    assert found.probabilities.max(axis=1).min() > 0.9


def test_ranking_keeps_the_right_ones_of_what_a_dalle_draws(clip: mmrt.Pipeline, dalle: mmrt.Pipeline) -> None:
    known = pixels(dalle.generate(KNOWN, temperature=0.0))
    every, kept = [], []
    for number, name in enumerate(NAMES["english"]):
        drawn = dalle.generate(name, num_images=8, seed=0, temperature=2.5)
        for result, right in ((drawn, every), (ranked(drawn, clip, "prompt", 2), kept)):
            distances = ((pixels(result)[:, None] - known) ** 2).sum(axis=(2, 3, 4))
            right += (distances.argmin(axis=1) == number).tolist()
    assert np.mean(every) < 0.92
    assert np.mean(kept) > 0.97


def pixels(result: mmrt.Result) -> np.ndarray:
    return np.stack([np.asarray(image, np.float32) for image in result.images])


@pytest.fixture(scope="module")
def dalle(tmp_path_factory: pytest.TempPathFactory) -> mmrt.Pipeline:
    if not all(map(importlib.util.find_spec, ("dalle_pytorch", "taming"))):
        pytest.skip("dalle-pytorch or taming is not installed")
    return mmrt.load(export_bundle(EXAMPLES / "dalle" / "checkpoint", tmp_path_factory.mktemp("dalle") / "dalle.mmrt"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> mmrt.Pipeline:
    return mmrt.load(export_bundle(EXAMPLES / "clip" / "checkpoint", tmp_path_factory.mktemp("clip") / "clip.mmrt"))
