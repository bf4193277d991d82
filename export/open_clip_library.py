"""open_clip, imported without torchvision where that is not installed: its models do not need it.

    pip install 'mmrt[export,openclip]' && pip install --no-deps open_clip_torch

PyPI's torchvision loads beside the PyTorch that it was built for and no other.
"""

from __future__ import annotations

import enum
import importlib
import types
from typing import Any

import torch

from mmrt.export.stand_ins import Nothing, stand_ins
from mmrt.runtime.errors import ExportError

_INSTALL = "pip install 'mmrt[openclip]' && pip install --no-deps open_clip_torch"
InterpolationMode = enum.Enum("InterpolationMode", "BILINEAR BICUBIC")
_TRANSFORMS = (
    "Normalize",
    "Compose",
    "RandomResizedCrop",
    "ToTensor",
    "Resize",
    "CenterCrop",
    "ColorJitter",
    "Grayscale",
)
_UNUSED: dict[str, dict[str, Any]] = {
    "torchvision": {},
    "torchvision.transforms": {**dict.fromkeys(_TRANSFORMS, Nothing), "InterpolationMode": InterpolationMode},
    "torchvision.transforms.functional": {},
    "torchvision.ops": {},
    "torchvision.ops.misc": {"FrozenBatchNorm2d": torch.nn.Identity},
}
_ALWAYS = {  # what wraps other libraries
    "open_clip.coca_model": {"CoCa": Nothing},
    "open_clip.hf_model": {"HFTextEncoder": Nothing},
    "open_clip.timm_model": {"TimmModel": Nothing},
}


def open_clip() -> types.ModuleType:
    """The package. Raises `ExportError` where it is not installed."""
    try:
        with stand_ins(_UNUSED, _ALWAYS):
            return importlib.import_module("open_clip")
    except ImportError as error:
        raise ExportError(f"open_clip cannot be imported ({error}): {_INSTALL}") from None
