"""What docs/ says is so: its commands and code run, and its tables are the code's."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import documents
import numpy as np
import pytest
from documents import DOCS, ROOT
from PIL import Image

import mmrt
from mmrt.runtime import manifest
from mmrt.runtime.receipt import TOLERANCES

NAMES = {path.name for path in DOCS.glob("*.md")}


def text(name: str) -> str:
    """A document."""
    return (DOCS / name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- commands and code


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, sd1_checkpoint: Path) -> Path:
    """A clone's examples with tiny random checkpoints, a photo, and a tiny package of emoji, after the tutorial."""
    pytest.importorskip("torch")
    import clip_checkpoints
    import text_checkpoints

    from mmrt.export.quiet import quiet

    folder = tmp_path_factory.mktemp("workshop")
    examples = folder / "examples"
    for name in ("custom_model/edits.py", "custom_model/train.py", "emoji/data.py", "custom_model.py"):
        (examples / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "examples" / name, examples / name)
    shutil.copytree(sd1_checkpoint, examples / "emoji/checkpoint")
    with quiet():
        clip_checkpoints.save(examples / "clip/checkpoint", "CLIP")
        text_checkpoints.vit_gpt2(examples / "captioner/checkpoint")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(folder / "photo.png")
    package(folder / "emoji-datasource-google-16.0.0.tgz")
    documents.run(DOCS / "tutorial.md", folder)
    return folder


def package(path: Path) -> None:
    """Like npm's, with twenty emoji of noise."""
    entries = [
        {"unified": f"1F6{place:02}", "image": f"1f6{place:02}.png", "sort_order": place, "category": "Symbols"}
        for place in range(20)
    ]
    random = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:
        _add(tar, "package/emoji.json", json.dumps(entries).encode())
        for entry in entries:
            data = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (64, 64, 4), np.uint8)).save(data, "PNG")
            _add(tar, f"package/img/google/64/{entry['image']}", data.getvalue())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def test_the_tutorial_works(workshop: Path) -> None:
    for name in ("heart.png", "sheet.png", "blue-heart.png", "best.png", "blue.png", "edits.png", "purple.png"):
        with Image.open(workshop / name) as picture:
            picture.load()
    assert np.load(workshop / "vectors.npy").shape[0] == 2
    assert mmrt.load(workshop / "editor.mmrt").manifest.source.family == "own"


@pytest.mark.parametrize("name", sorted(NAMES - {"tutorial.md"}))
def test_its_commands_and_code_work(name: str, workshop: Path) -> None:
    documents.run(DOCS / name, workshop)


def test_every_command_of_environments_is_of_a_known_kind() -> None:
    """Those that tests do not run install an extra that there is, or pack what the tutorial trains on."""
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("optional-dependencies]")[1], re.M)
    for name in NAMES:
        for line in documents.commands(DOCS / name):
            if "pip install" in line:
                assert re.search(r"\.\[(\w+)\]", line)[1] in extras, line  # type: ignore[index]


# ---------------------------------------------------------------- what is said of the code


def test_the_command_line_is_as_its_help_says() -> None:
    """If not: python tests/documents.py"""
    assert documents.with_helps(text("cli.md")) == text("cli.md")
    assert re.findall(r"^## mmrt (\w+)$", text("cli.md"), re.M) == list(documents.helps())


def test_the_tolerances_are_those() -> None:
    rows = re.findall(r"^\| ((?:fp|bf|int)\d+) \| ([\d.]+) \| (\d+) dB \| (\d+) dB \|$", text("verification.md"), re.M)
    assert {name: tuple(map(float, numbers)) for name, *numbers in rows} == {
        name: (each.relative, each.psnr, each.snr) for name, each in TOLERANCES.items()
    }


def test_the_format_is_all_there() -> None:
    page = text("bundle.md")
    assert page.startswith(f"# The bundle, format {manifest.FORMAT}\n")
    structs = (manifest.Input, manifest.Output, manifest.Stage)
    tags = {each.__struct_config__.tag for union in structs for each in union.__args__}  # type: ignore[attr-defined]
    for word in (*tags, *manifest.Manifest.__struct_fields__):
        assert f"`{word}`" in page, word


def test_public_names_are_all_there() -> None:
    export = pytest.importorskip("mmrt.export")
    for name in mmrt.__all__:
        assert re.search(rf"\b{name}\b", text("python.md")), name
    for name in export.__all__:
        assert re.search(rf"\b{name}\b", text("own_model.md") + text("python.md")), name


def test_links_lead_somewhere() -> None:
    for path in (ROOT / "README.md", *DOCS.glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_custom_model_is_short() -> None:
    assert len((ROOT / "examples/custom_model.py").read_text().splitlines()) <= 80
