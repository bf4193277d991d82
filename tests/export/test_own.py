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
    "no function": ("def recipe():", "recipe = 3\ndef another():", r"my_model\.py: has no function 'recipe'"),
    "no recipe": ("    rows = {0", "    return 3\n    rows = {0", r"recipe\(\) gives int, wanted a mmrt\.export"),
    "a file that fails": ("import torch\n", "import torch\n1 / 0\n", "my_model.py, line 3: ZeroDivisionError"),
    "a function that fails": ("    rows = {0", "    1 / 0\n    rows = {0", r"line \d+: ZeroDivisionError"),
    "no Python": ("def recipe():", "def recipe(:", r"my_model\.py: SyntaxError: .* line \d+"),
    "a package that is not there": ("import torch\n", "import torch, torchh\n", "ModuleNotFoundError: No module named"),
    "a script that ends": ("import torch\n", "import torch\nexit(3)\n", "SystemExit: 3; a script's own work belongs"),
    "arguments": ("def recipe():", "def recipe(size):", "TypeError: recipe.. missing 1 required positional argument"),
    "a bad graph": ("Negative().eval()", "Negative()", "negative: it is in training mode: call eval"),
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


def test_classes_of_the_file_know_their_module(tmp_path: Path) -> None:
    """A dataclass whose annotations are texts looks its module up."""
    model = "from __future__ import annotations\n" + MODEL.replace(
        "def recipe():",
        "import dataclasses, typing\n\n\n"
        "@dataclasses.dataclass\nclass Settings:\n    side: typing.ClassVar[int] = 16\n\n\n"
        "def recipe():\n    assert Settings().side == 16",
    )
    before = dict(sys.modules)
    Function(write(tmp_path, model), "recipe").recipe()
    assert sys.modules.get("my_model") is before.get("my_model")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"other\.py: no such file"):
        exported(tmp_path, f"{tmp_path / 'other.py'}:recipe")
