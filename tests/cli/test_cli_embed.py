"""`mmrt embed` and `mmrt score`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import export_bundle
from clip_checkpoints import save
from command import Mmrt
from picture_checkpoints import pictures
from PIL import Image

from mmrt.export.quiet import quiet
from mmrt.runtime.pipeline import load
from mmrt.runtime.similarity import score

TEXTS = ["a red heart", "two blue cars in the rain", "x"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    with quiet():
        checkpoint = save(folder / "checkpoint", "CLIP")
    return export_bundle(checkpoint, folder / "clip.mmrt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, picture in zip("badc", pictures(), strict=True):
        picture.save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_embed(mmrt: Mmrt, clip: Path, folder: Path, tmp_path: Path) -> None:
    pipeline = load(clip)
    shown = [pictures()[place] for place in (1, 0, 3, 2)]
    texts, images = pipeline.generate(TEXTS).embeddings, pipeline.generate(image=shown).embeddings
    file = tmp_path / "vectors.npy"
    result = mmrt("embed", clip, *TEXTS[:2], "--image", folder, "--batch", 3, "-o", file)
    assert result.code == 0, result.err
    found = np.load(file)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([texts[:2], images]), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    result = mmrt("embed", clip, TEXTS[0], "--image", folder / "b.png")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [{**line, "vector": 0} for line in lines] == [
        {"text": TEXTS[0], "vector": 0},
        {"image": str(folder / "b.png"), "vector": 0},
    ]
    np.testing.assert_allclose(lines[0]["vector"], texts[0], atol=1e-6)
    mmrt("embed", clip, TEXTS[0], "-o", tmp_path / "vectors.jsonl")
    assert json.loads((tmp_path / "vectors.jsonl").read_text()) == lines[0]


def test_score(mmrt: Mmrt, clip: Path, folder: Path) -> None:
    result = mmrt("score", clip, *TEXTS[:3], "--image", folder, "--json")
    rows = json.loads(result.out)
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "c.png", "d.png"]
    wanted = score(load(clip), TEXTS[:3], [folder / "a.png"])
    best = int(wanted.similarities[0].argmax())
    assert rows[0]["texts"][0]["text"] == TEXTS[best]
    assert rows[0]["texts"][0]["probability"] == pytest.approx(float(wanted.probabilities[0, best]), abs=1e-5)
    assert sum(each["probability"] for each in rows[0]["texts"]) == pytest.approx(1, abs=1e-4)
    shown = mmrt("score", clip, "one", "two", "--image", folder / "a.png").out
    assert "one" in shown
    assert "%" in shown


def test_rank(mmrt: Mmrt, clip: Path, handmade: Path, tmp_path: Path) -> None:
    """Of each text the pictures that fit it best, in that order, and what made them."""
    texts = ["a red heart", "x"]
    arguments = ["generate", handmade, *texts, "--num-images", 3, "--seed", 5, "--rank", clip, "--keep", 2, "--json"]
    found = json.loads(mmrt(*arguments, "-o", tmp_path / "out.png").out)
    made = load(handmade).generate(texts, num_images=3, seed=5)
    best = []
    for place, text in ((0, texts[0]), (3, texts[1])):
        fits = score(load(clip), [text], made.images[place : place + 3]).similarities[:, 0]
        best += [place + int(each) for each in (-fits).argsort()[:2]]
    assert [each["request"] for each in found["provenance"]] == [made.provenance[place]["request"] for place in best]
    assert len(found["images"]) == 4
    for file, place in zip(found["images"], best, strict=True):
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(made.images[place]))
    ran = mmrt("generate", handmade, "a", "--rank", handmade, "-o", tmp_path / "a.png")
    assert "does not say how alike" in ran.error
    assert "--keep is for" in mmrt("generate", handmade, "a", "--keep", 2).error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "BUNDLE"], "nothing is given"),
        (["embed", "BUNDLE", "a", "-o", "vectors.txt"], "written to .npy or .jsonl"),
        (["embed", "BUNDLE", "--image", "EMPTY"], "a folder without pictures"),
        (["embed", "BUNDLE", "--image", "nothing.png"], "no such file"),
        (["embed", "BUNDLE", "a", "-o", "nowhere/a.npy"], "cannot be written"),
        (["generate", "BUNDLE", "a"], "mmrt embed"),
        (["score", "BUNDLE", "a", "--image", "notes.txt"], "not a picture that can be read|no such file"),
    ],
)
def test_errors_of_the_command_line(mmrt: Mmrt, clip: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    names = {"BUNDLE": clip, "EMPTY": tmp_path}
    result = mmrt(*(names.get(each, each) for each in arguments))
    assert re.search(message, result.error)
