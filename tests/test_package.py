"""The package: what a wheel holds, what importing costs, and what the links in src/mmrt lead to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("export", "runtime", "cli")
HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "scipy", "huggingface_hub")


def sources() -> set[str]:
    """What belongs into the package, of the files that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    found = {f"mmrt/{name}" for name in listed if (ROOT / name).is_file() and Path(name).suffix in (".py", ".cu")}
    return found | {"mmrt/__init__.py", "mmrt/__main__.py", "mmrt/version.py", "mmrt/py.typed"}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel is built of, so that nothing is left in the repository."""
    source = tmp_path_factory.mktemp("package") / "source"
    source.mkdir()
    for name in (*FOLDERS, "src/mmrt", "pyproject.toml", "setup.py", "LICENSE", "README.md"):
        (source / name).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", str(ROOT / name), str(source / name)], check=True)
    return source


def build(source: Path, into: Path, path: Path) -> Path:
    """The wheel that is built where the commands of `path` are."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", into, source],
        check=True, capture_output=True, text=True,
        env=os.environ | {"PATH": str(path), "CUDA_HOME": "", "CUDA_PATH": ""},
    )  # fmt: skip
    shutil.rmtree(source / "build")
    [made] = into.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(copied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is without CUDA's compiler."""
    return build(copied, tmp_path_factory.mktemp("wheel"), Path("/nowhere"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_exactly_the_sources(wheel: Path) -> None:
    assert names(wheel) == sources()


def test_the_wheel_holds_the_kernels_where_they_can_be_compiled(copied: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        f"#!{sys.executable}\nimport sys\nprint('compute_75')\n"
        "if '-o' in sys.argv: open(sys.argv[sys.argv.index('-o') + 1], 'w').write('compiled')\n"
    )
    nvcc.chmod(0o755)
    found = build(copied, tmp_path, tmp_path)
    assert names(found) == sources() | {"mmrt/runtime/kernels/kernels.fatbin"}
    with zipfile.ZipFile(found) as archive:
        assert archive.read("mmrt/runtime/kernels/kernels.fatbin") == b"compiled"


def test_the_wheel_has_a_command_and_a_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [command] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "mmrt = mmrt.cli.main:main" in archive.read(command).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_wheel_runs_where_nothing_else_of_the_repository_is(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import mmrt, mmrt.cli.main, mmrt.export; print(mmrt.__file__)"
    found = _python(code, PYTHONPATH=str(tmp_path))
    assert found.strip() == str(tmp_path / "mmrt/__init__.py")


def test_the_links_lead_to_the_folders() -> None:
    for name in FOLDERS:
        link = ROOT / "src/mmrt" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../../{name}"
        assert link.resolve() == ROOT / name


def test_importing_mmrt_is_light() -> None:
    modules = json.loads(_python("import mmrt, sys, json; print(json.dumps(list(sys.modules)))"))
    assert _roots(modules).isdisjoint({*HEAVY, "onnxruntime", "PIL", "click"})


def test_the_whole_runtime_and_command_line_bring_in_no_torch() -> None:
    names = [
        ".".join(("mmrt", *path.relative_to(ROOT).with_suffix("").parts))
        for folder in ("runtime", "cli")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    assert len(names) > 20
    code = f"import importlib, sys, json\nfor name in {names!r}: importlib.import_module(name)\n"
    modules = json.loads(_python(f"{code}print(json.dumps(list(sys.modules)))"))
    assert set(names) <= set(modules)
    assert _roots(modules).isdisjoint(HEAVY)


def test_imports_go_one_way() -> None:
    for folder, forbidden in (("runtime", ("export", "cli")), ("export", ("cli",))):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for other in forbidden:
                assert f"mmrt.{other}" not in text, f"{path} knows of mmrt.{other}"
                assert f"from mmrt import {other}" not in text, f"{path} knows of mmrt.{other}"


def test_no_file_is_named_for_nothing() -> None:
    empty = {"base.py", "common.py", "utils.py", "util.py", "helpers.py", "manager.py", "misc.py"}
    assert not [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.name in empty]


def _roots(modules: list[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def _python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    ).stdout
