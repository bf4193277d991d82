"""The bundle of tests/bundles.py, and the command line run within the tests' own process."""

from __future__ import annotations

import sys
from pathlib import Path

import bundles
import pytest
from command import Mmrt, Ran

from mmrt.cli.main import main


@pytest.fixture(scope="session")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, not to be changed."""
    return bundles.build(tmp_path_factory.mktemp("bundle") / "handmade.mmrt")


@pytest.fixture
def damaged(handmade: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    return bundles.copy(handmade, tmp_path)


@pytest.fixture
def mmrt(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mmrt:
    """Run `mmrt ARGUMENTS`."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["mmrt", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run
