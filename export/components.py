"""The parts of a checkpoint, loaded by diffusers and transformers themselves in fp32, and found whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch.nn.utils import parametrize

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.quiet import quiet
from mmrt.runtime.errors import ExportError

_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def load_model(checkpoint: Checkpoint, component: str, class_name: str) -> Any:
    """A component with all its weights, in fp32 and eval mode; "." is the checkpoint itself.

    `class_name` is a class of diffusers or transformers with its library's name before it, such as
    `diffusers.AutoencoderKL`.

    Raises `ExportError` where weights are missing, of another shape, or not finite: the libraries would fill the gaps
    with random numbers.
    """
    folder = checkpoint.path / component
    checkpoint.json(f"{component}/config.json")
    weights = checkpoint.weights(component)
    library, name = class_name.split(".")
    options = {"torch_dtype": torch.float32} if library == "diffusers" else {"dtype": torch.float32}
    try:
        with quiet():
            model, report = getattr(_LIBRARIES[library], name).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=weights.safe,
                variant=weights.variant,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # the libraries raise of everything
        raise ExportError(f"{folder}: {class_name} cannot be loaded from it: {_one_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, report[problem])):
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise ExportError(f"{weights.files[0]}: weights are {problem.split('_')[0]}: {shown}")
    finite(model, weights.files[0])
    for module in [*model.modules()]:
        if parametrize.is_parametrized(module, "weight"):  # weight norm, which would be computed in every call
            parametrize.remove_parametrizations(module, "weight")
    return model.eval().requires_grad_(False)


def finite(model: torch.nn.Module, file: Path) -> None:
    """That the weights are numbers. Raises `ExportError` naming the file."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ExportError(f"{file}: {name} holds NaN or infinite numbers")


def load_pipeline(checkpoint: Checkpoint, class_name: str, models: dict[str, Any]) -> Any:
    """diffusers' pipeline object around `models`; what else it needs is read from the folder, but no safety checker."""
    try:
        with quiet():
            pipeline = getattr(diffusers, class_name).from_pretrained(
                checkpoint.path,
                local_files_only=True,
                torch_dtype=torch.float32,
                safety_checker=None,
                feature_extractor=None,
                image_encoder=None,
                requires_safety_checker=False,
                **models,
            )
    except Exception as error:
        raise ExportError(f"{checkpoint.path}: {class_name} cannot be loaded from it: {_one_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_processor(checkpoint: Checkpoint, class_name: str) -> Any:
    """A tokenizer or an image processor of a transformers checkpoint, by transformers' `Auto` class of that name."""
    try:
        with quiet():
            return getattr(transformers, class_name).from_pretrained(checkpoint.path, local_files_only=True)
    except Exception as error:  # as above
        raise ExportError(f"{checkpoint.path}: {class_name} finds nothing to load: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
