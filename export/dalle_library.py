"""dalle-pytorch, imported without the packages that only its other VAEs need.

    pip install 'mmrt[export,dalle]' && pip install --no-deps dalle-pytorch

Its declared dependencies do not install beside a present PyTorch, and all that a `DALLE` with its own `DiscreteVAE`
uses of them are those three. While it is imported, empty modules stand for the rest where they are missing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

from mmrt.runtime.errors import ExportError

_INSTALL = "pip install 'mmrt[dalle]' && pip install --no-deps dalle-pytorch"
_UNUSED: dict[str, tuple[str, ...]] = {
    "omegaconf": ("OmegaConf",),
    "taming": (),
    "taming.models": (),
    "taming.models.vqgan": ("VQModel", "GumbelVQ"),
    "pkg_resources": ("get_distribution",),
}


def dalle_pytorch() -> Any:
    """The package `dalle_pytorch`. Raises `ExportError` where it is not installed."""
    try:
        with _stand_ins():
            return importlib.import_module("dalle_pytorch")
    except ImportError as error:
        raise ExportError(f"dalle-pytorch cannot be imported ({error}): {_INSTALL}") from None


class _Nothing:
    """What an unused name of a missing package is."""

    version = None

    def __init__(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    missing = [name for name in _UNUSED if not _installed(name.partition(".")[0])]
    try:
        for name in missing:
            module = types.ModuleType(name)
            vars(module).update(dict.fromkeys(_UNUSED[name], _Nothing))
            sys.modules[name] = module
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
