"""dalle-pytorch, and taming's VQGANs, imported without the packages that only their training needs.

    pip install 'mmrt[export,dalle]' && pip install --no-deps dalle-pytorch taming-transformers-rom1504

Their declared dependencies do not install beside a present PyTorch, and all that a `DALLE` uses of them are those of
the extra. While they are imported, modules with nothing behind them stand for the rest. Only VQGANs need taming.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

from mmrt.runtime.errors import ExportError

_INSTALL = "pip install 'mmrt[dalle]' && pip install --no-deps dalle-pytorch taming-transformers-rom1504"


def dalle_pytorch() -> Any:
    """The package `dalle_pytorch`. Raises `ExportError` where it is not installed."""
    try:
        with _stand_ins():
            return importlib.import_module("dalle_pytorch")
    except ImportError as error:
        raise ExportError(f"dalle-pytorch cannot be imported ({error}): {_INSTALL}") from None


def vqgans() -> Any:
    """The module `taming.models.vqgan`. What a configuration names for training is not looked for: it is an identity.

    Raises `ExportError` where it is not installed.
    """
    if not _installed("taming"):
        raise ExportError(f"taming, which a VQGAN needs, is not installed: {_INSTALL}")
    with _stand_ins():
        return importlib.import_module("taming.models.vqgan")


class _Nothing:
    """What an unused name of a missing package is."""

    version = None

    def __init__(self, *_: Any) -> None:
        pass


_STAND_INS: dict[str, dict[str, Any]] = {
    "omegaconf": {"OmegaConf": _Nothing},
    "pkg_resources": {"get_distribution": _Nothing},
    "pytorch_lightning": {"LightningModule": torch.nn.Module},
    "taming": {},
    "taming.models": {},
    "taming.models.vqgan": {"VQModel": _Nothing, "GumbelVQ": _Nothing},
}
_ALWAYS = {"taming.main": {"instantiate_from_config": torch.nn.Identity}}  # the script that trains


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    missing = {name: names for name, names in _STAND_INS.items() if not _installed(name.partition(".")[0])} | _ALWAYS
    before = {name: sys.modules[name] for name in missing if name in sys.modules}
    try:
        for name, names in missing.items():
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(names)
        yield
    finally:
        for name in missing:
            del sys.modules[name]
        sys.modules.update(before)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
