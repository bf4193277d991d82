"""A bundle appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from mmrt.export import writer
from mmrt.runtime.errors import ExportError


def fill(folder: Path, content: str = "new") -> None:
    (folder / "graphs").mkdir()
    (folder / "graphs" / "a.onnx").write_text(content)
    (folder / "manifest.json").write_text("{}")


def test_it_appears_at_the_end_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "thing.mmrt"
    with writer.staging(target) as folder:
        fill(folder)
        assert not target.exists()
        assert folder.name == f".thing.mmrt.{os.getpid()}.part"
    assert (target / "graphs" / "a.onnx").read_text() == "new"
    assert os.listdir(tmp_path) == ["thing.mmrt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_after_an_error_nothing_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), writer.staging(tmp_path / "thing.mmrt") as folder:  # noqa: PT012
        fill(folder)
        raise error
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_an_export_error(tmp_path: Path) -> None:
    message = "thing.mmrt: cannot be written: No space left"
    with pytest.raises(ExportError, match=message), writer.staging(tmp_path / "thing.mmrt") as folder:  # noqa: PT012
        fill(folder)
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_bundle_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "thing.mmrt"
    with writer.staging(target) as folder:
        fill(folder, "old")
    with pytest.raises(ExportError, match="already exists"), writer.staging(target):
        pass
    with writer.staging(target, overwrite=True) as folder:
        fill(folder)
    assert (target / "graphs" / "a.onnx").read_text() == "new"
    assert os.listdir(tmp_path) == ["thing.mmrt"]


def test_a_failed_replacement_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "thing.mmrt"
    with writer.staging(target) as folder:
        fill(folder, "old")
    rename = Path.rename

    def broken(path: Path, other: Path) -> Path:
        if path.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(ExportError, match="Input/output"), writer.staging(target, overwrite=True) as folder:
        fill(folder)
    assert (target / "graphs" / "a.onnx").read_text() == "old"
    assert os.listdir(tmp_path) == ["thing.mmrt"]


def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "photos"
    target.mkdir()
    (target / "holiday.jpg").write_text("precious")
    with pytest.raises(ExportError, match="not a bundle"), writer.staging(target, overwrite=True):
        pass
    assert (target / "holiday.jpg").exists()


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not exist"), writer.staging(tmp_path / "no" / "thing.mmrt"):
        pass


_CHILD = """
import sys, time
from pathlib import Path
from mmrt.export import writer
def steps():
    with writer.staging(Path(sys.argv[1])) as folder:
        (folder / "big").write_text("half")
        yield
        time.sleep(60)
for _ in steps():
    print("ready", flush=True)
    if sys.argv[2] == "outside":
        time.sleep(60)
"""


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals, where: str) -> None:
    """Whether it comes while the exporter works, or while its caller does."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path / "thing.mmrt"), where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    assert os.listdir(tmp_path) == [f".thing.mmrt.{child.pid}.part"]
    time.sleep(0.2)
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode != 0
    assert os.listdir(tmp_path) == []
