"""Recipes of one's own: a Python file becomes a bundle, and what is wrong in it is said."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import mmrt  # noqa: E402
from mmrt.export.exporter import export  # noqa: E402
from mmrt.export.own import Function  # noqa: E402
from mmrt.runtime.errors import ExportError  # noqa: E402
from mmrt.runtime.receipt import replay  # noqa: E402

BESIDE = "BRIGHTEST = 255"
MODEL = """
import torch
from beside import BRIGHTEST
from mmrt.export import Fit, Float, Graph, Image, ImageOutput, Once, Recipe, Size


class Negative(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(3, 3)

    def forward(self, picture):
        made = BRIGHTEST - picture.float() + 0 * self.mix(picture.float())
        return made.round().to(torch.uint8)


def recipe():
    rows = {0: "rows"}
    return Recipe(
        task="image-to-image",
        inputs={
            "image": Image(array="picture", fit=Fit(width=16, height=8, resample="nearest"), required=True),
            "size": Size(default=(16, 8), multiple=8, max=16),
        },
        outputs={"image": ImageOutput(source="pixels")},
        graphs={
            "negative": Graph(
                Negative().eval(),
                {"picture": torch.randint(0, 256, (2, 8, 16, 3), dtype=torch.uint8)},
                ("pixels",),
                {"picture": rows, "pixels": rows},
            )
        },
        program=(Once(graphs=("negative",)),),
    )
"""


def write(folder: Path, model: str = MODEL) -> Path:
    (folder / "beside.py").write_text(BESIDE)
    (folder / "my_model.py").write_text(model)
    return folder / "my_model.py"


def exported(folder: Path, named: str) -> Path:
    for _ in export(named, folder / "my.mmrt"):
        pass
    return folder / "my.mmrt"


def test_a_file_becomes_a_bundle(tmp_path: Path) -> None:
    path, file = list(sys.path), write(tmp_path)
    pipeline = mmrt.load(exported(tmp_path, f"{file}:recipe"))
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3)).astype(np.uint8)
    found = pipeline.generate(image=Image.fromarray(picture)).image
    assert np.array_equal(np.asarray(found), 255 - picture)
    assert [(check.what, check.passed) for check in replay(pipeline)] == [("negative 0: pixels", True)]
    assert pipeline.manifest.source.family == "own"
    assert list(pipeline.manifest.source.checkpoint) == ["my_model.py"]
    assert pipeline.manifest.name == "my"
    assert sys.path == path


def test_a_recipe_becomes_a_bundle(tmp_path: Path) -> None:
    recipe = Function(write(tmp_path), "recipe").recipe()
    for _ in export(recipe, tmp_path / "my.mmrt"):
        pass
    assert mmrt.load(tmp_path / "my.mmrt").manifest.source.checkpoint == {}


WRONG: dict[str, tuple[str, str, str]] = {  # what stands in the file, what instead, what is said
    "no such function": ("def recipe", "def another", r"my_model\.py: has no function 'recipe'"),
    "no recipe": ("    rows = {0", "    return 3\n    rows = {0", r"recipe\(\) gives int, wanted a mmrt\.export"),
    "a file that fails": ("import torch\n", "import torch\n1 / 0\n", "my_model.py, line 3: ZeroDivisionError"),
    "a function that fails": ("    rows = {0", "    1 / 0\n    rows = {0", r"line \d+: ZeroDivisionError"),
    "training mode": ("Negative().eval()", "Negative()", "negative: it is in training mode: call eval"),
    "a name that forward has not": ('{"picture": torch.r', '{"image": torch.r', "the recipe gives 'image'"),
    "an input without a name": ("def forward(self, picture)", "def forward(self, picture, more)", "needs 'more'"),
    "two outputs": ('("pixels",)', '("pixels", "more")', "forward gives Tensor, wanted 2 tensors: pixels, more"),
    "no tensor": ("return made.round", "return 3, made.round", "forward gives int, Tensor, wanted 1 tensors: pixels"),
    "chance": ("return made.round", "made = made * torch.rand(1)\n        return made.round", "'pixels' is another in"),
    "a wrong example": ("(2, 8, 16, 3)", "(2, 8, 16, 4)", "negative: fails with its example inputs: RuntimeError"),
    "an if about values": (
        "return made.round", "made = made * 2 if made.sum() > 0 else made\n        return made.round",
        "looks at what a tensor holds: use torch.where",
    ),
    "a dtype that nobody makes": ("dtype=torch.uint8)}", "dtype=torch.int64)}", r"'picture' is made as uint8"),
    "float64": (".to(torch.uint8)", ".double()", "'pixels' is DOUBLE, supported are"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(tmp_path: Path, case: str) -> None:
    old, new, message = WRONG[case]
    assert MODEL.count(old) == 1
    file = write(tmp_path, MODEL.replace(old, new))
    with pytest.raises(ExportError) as caught:
        exported(tmp_path, f"{file}:recipe")
    assert re.search(message, str(caught.value)), str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"beside.py", "my_model.py"}


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"other\.py: no such file"):
        exported(tmp_path, f"{tmp_path / 'other.py'}:recipe")
