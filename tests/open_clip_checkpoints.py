"""Tiny random checkpoints of open_clip: both its classes of models, both its kinds of vision tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 2}
_SEEN = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "CLIP": {"embed_dim": 20, "quick_gelu": True, "vision_cfg": _SEEN, "text_cfg": _TEXT},
    "sigmoid": {
        "embed_dim": 16,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {**_SEEN, "no_ln_pre": True, "pool_type": "avg", "norm_kwargs": {"eps": 1e-6}},
        "text_cfg": {
            **_TEXT,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
    },
    "ResNet": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {**_TEXT, "layers": 1, "tokenizer_kwargs": {"clean": "whitespace"}},
    },
}
PREPROCESS: dict[str, dict[str, Any]] = {
    "CLIP": {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.25, 0.27]},
    "sigmoid": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    "ResNet": {"interpolation": "bilinear", "resize_mode": "longest", "fill_color": 99},
}


def save(folder: Path, kind: str) -> Path:
    """A checkpoint of a kind in `CONFIGS`; the ResNet's weights are a pickle."""
    import torch
    from safetensors.torch import save_file

    from mmrt.export.open_clip_library import open_clip

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    config = {"model_cfg": CONFIGS[kind], "preprocess_cfg": PREPROCESS[kind]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip().create_model(f"local-dir:{folder}")
    state = {name: 3 * tensor if tensor.ndim > 1 else tensor for name, tensor in model.state_dict().items()}
    if kind == "ResNet":
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    return folder
