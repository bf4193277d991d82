"""The tiny checkpoints of tests/checkpoints.py, and bundles exported from them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import SD1, SD2, export_bundle, save_checkpoint

from mmrt.runtime import background, selection
from mmrt.runtime.devices import driver

# A suite that is started in the background ignores SIGINT, and so would the processes that its tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache and decisions stay out of it."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
        yield


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """A GPU of this machine is for the tests marked `gpu`; that the others do without it is not said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_library", lambda: None)
        patch.setattr(selection, "_SAID", {"runs on the CPU: no NVIDIA driver is installed"})
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_in_the_background() -> Iterator[None]:
    """Engines are built in the background by the tests of that alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "_has_python", lambda: False)
        yield


@pytest.fixture(scope="session")
def sd1_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like SD 1.5: epsilon, PNDM, one head count for all blocks, convolutions as projections, quick_gelu."""
    return save_checkpoint(tmp_path_factory.mktemp("sd1") / "tiny-sd1", **SD1)


@pytest.fixture(scope="session")
def sd2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like SD 2.1: v_prediction, DDIM, heads per block, linear projections, upcast attention, gelu; VAE factor 4."""
    return save_checkpoint(tmp_path_factory.mktemp("sd2") / "tiny-sd2", **SD2)


@pytest.fixture(scope="session")
def sd1_bundle(sd1_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sd1_checkpoint`, exported."""
    return export_bundle(sd1_checkpoint, tmp_path_factory.mktemp("bundles") / "sd1.mmrt")


@pytest.fixture(scope="session")
def sd2_bundle(sd2_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sd2_checkpoint`, exported."""
    return export_bundle(sd2_checkpoint, tmp_path_factory.mktemp("bundles") / "sd2.mmrt")
