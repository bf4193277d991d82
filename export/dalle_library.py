"""dalle-pytorch, and taming's VQGANs, imported without the packages that only their training needs.

    pip install 'mmrt[export,dalle]' && pip install --no-deps dalle-pytorch taming-transformers-rom1504

Their declared dependencies do not install beside a present PyTorch, and all that a `DALLE` uses of them are those of
the extra. While they are imported, modules with nothing behind them stand for the rest. Only VQGANs need taming.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from mmrt.export.stand_ins import Nothing, installed, stand_ins
from mmrt.runtime.errors import ExportError

_INSTALL = "pip install 'mmrt[dalle]' && pip install --no-deps dalle-pytorch taming-transformers-rom1504"


def dalle_pytorch() -> Any:
    """The package `dalle_pytorch`. Raises `ExportError` where it is not installed."""
    try:
        with stand_ins(_UNUSED, _ALWAYS):
            return importlib.import_module("dalle_pytorch")
    except ImportError as error:
        raise ExportError(f"dalle-pytorch cannot be imported ({error}): {_INSTALL}") from None


def vqgans() -> Any:
    """The module `taming.models.vqgan`. What a configuration names for training is not looked for: it is an identity.

    Raises `ExportError` where it is not installed.
    """
    if not installed("taming"):
        raise ExportError(f"taming, which a VQGAN needs, is not installed: {_INSTALL}")
    with stand_ins(_UNUSED, _ALWAYS):
        return importlib.import_module("taming.models.vqgan")


_UNUSED: dict[str, dict[str, Any]] = {
    "omegaconf": {"OmegaConf": Nothing},
    "pkg_resources": {"get_distribution": Nothing},
    "pytorch_lightning": {"LightningModule": torch.nn.Module},
    "taming": {},
    "taming.models": {},
    "taming.models.vqgan": {"VQModel": Nothing, "GumbelVQ": Nothing},
}
_ALWAYS = {"taming.main": {"instantiate_from_config": torch.nn.Identity}}  # the script that trains
