"""The trained CLIP example: drawings of the emoji example find their names, in English and Chinese."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")

from checkpoints import export_bundle

import mmrt
from mmrt.runtime.similarity import score

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = {
    "english": ["red heart", "pizza", "cat face", "dog face", "blue heart", "rocket"],
    "chinese": ["红心", "披萨", "猫脸", "狗脸", "蓝心", "火箭"],
}
DRAWN = [0, 0, 1, 2]  # of these names, two by two on the emoji example's sheet


@pytest.mark.parametrize("language", NAMES)
def test_drawings_find_their_names(language: str, clip: mmrt.Pipeline) -> None:
    sheet = np.asarray(Image.open(EXAMPLES / "emoji" / "sheet.png").convert("RGB"))
    drawings = [sheet[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    found = score(clip, NAMES[language], drawings)
    assert found.similarities.argmax(axis=1).tolist() == DRAWN
    assert found.probabilities.max(axis=1).min() > 0.9


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> mmrt.Pipeline:
    return mmrt.load(export_bundle(EXAMPLES / "clip" / "checkpoint", tmp_path_factory.mktemp("clip") / "clip.mmrt"))
