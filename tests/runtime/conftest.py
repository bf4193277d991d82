"""The bundle of tests/bundles.py, as it is and loaded."""

from __future__ import annotations

from pathlib import Path

import bundles
import pytest

from mmrt.runtime.pipeline import Pipeline, load


@pytest.fixture(scope="session")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, not to be changed."""
    return bundles.build(tmp_path_factory.mktemp("bundle") / "handmade.mmrt")


@pytest.fixture(scope="session")
def pipeline(handmade: Path) -> Pipeline:
    """The bundle, loaded, on one thread."""
    return load(handmade, threads=1)


@pytest.fixture
def damaged(handmade: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    return bundles.copy(handmade, tmp_path)
