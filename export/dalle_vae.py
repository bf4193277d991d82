"""What makes pictures of codes in a DALL-E: dalle-pytorch's own `DiscreteVAE`, or a VQGAN of taming-transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmrt.export.dalle_library import dalle_pytorch, vqgans
from mmrt.runtime.errors import ExportError


def new_vae(where: Path, folder: Path, saved: Mapping[str, Any]) -> Any:
    """The VAE that a checkpoint names, without its weights. Raises `ExportError`."""
    options = saved.get("vae_params")
    kind = saved.get("vae_class_name") or ("DiscreteVAE" if options else "none that it says")
    if kind == "VQGanVAE":
        return _vqgan(folder)
    if kind != "DiscreteVAE" or not isinstance(options, dict):
        raise ExportError(
            f"{where}: the VAE is {kind}, supported are dalle-pytorch's own DiscreteVAE "
            "with its vae_params and VQGanVAE"
        )
    if options.get("channels", 3) != 3:
        raise ExportError(f"{where}: pictures of {options['channels']} channels, supported are 3")
    return dalle_pytorch().DiscreteVAE(**options)


def _vqgan(folder: Path) -> Any:
    """dalle-pytorch's `VQGanVAE`, whose configuration is not in its checkpoints but in the YAML file beside them.

    Of what that names only the two classes of VQGANs are known; nothing is imported because a file says so.
    """
    import yaml

    found = sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    if len(found) != 1:
        raise ExportError(
            f"{folder}: has {len(found)} YAML files, wanted one, with the configuration of the VQGAN: "
            "what dalle-pytorch was given as vqgan_config_path"
        )
    (file,) = found
    try:
        model = yaml.safe_load(file.read_text(encoding="utf8"))["model"]
        kind, params, size = model["target"], model["params"], model["params"]["ddconfig"]
        factor = size["resolution"] / size["attn_resolutions"][0]
        levels, codes, width = len(size["ch_mult"]), params["n_embed"], params["embed_dim"]
    except Exception as error:  # whatever a file may hold
        raise ExportError(f"{file}: not the configuration of a VQGAN: {type(error).__name__}: {error}") from None
    if kind not in ("taming.models.vqgan.VQModel", "taming.models.vqgan.GumbelVQ"):
        raise ExportError(f"{file}: target is {kind!r}, supported are taming.models.vqgan's VQModel and GumbelVQ")
    if params.get("remap") is not None or size.get("in_channels") != 3 or size.get("out_ch") != 3:
        raise ExportError(f"{file}: codes that are remapped, or other channels than 3, are not supported")
    if factor != 2 ** (levels - 1):  # dalle-pytorch counts codes by the one, the VQGAN makes them by the other
        raise ExportError(
            f"{file}: attention at 1/{factor:g} of the resolution, wanted 1/{2 ** (levels - 1)} as ch_mult"
        )
    gumbel = kind.endswith("GumbelVQ")
    more = {"temperature_scheduler_config": None} if gumbel else {}
    library, made = dalle_pytorch(), getattr(vqgans(), "GumbelVQ" if gumbel else "VQModel")
    vae = library.VQGanVAE.__new__(library.VQGanVAE)  # its __init__ reads weights of its own
    torch.nn.Module.__init__(vae)
    vae.model = made(ddconfig=size, lossconfig=None, n_embed=codes, embed_dim=width, **more)
    vae.num_layers, vae.channels, vae.image_size = int(math.log2(factor)), 3, 256
    vae.num_tokens, vae.is_gumbel = codes, gumbel
    return vae


def codes_of(vae: Any, pictures: Any) -> Any:
    """uint8 (rows, height, width, 3) -> int64 (rows, codes): the nearest codes, or the most likely ones.

    Where a Gumbel VQGAN's own method draws them, the most likely ones are taken.
    """
    floats = pictures.permute(0, 3, 1, 2).float() / 255
    if not hasattr(vae, "is_gumbel"):
        return vae(floats, return_logits=True).argmax(dim=1).flatten(1)
    model, signed = vae.model, 2 * floats - 1
    if vae.is_gumbel:
        return model.quantize.proj(model.encode_to_prequant(signed)).argmax(dim=1).flatten(1)
    _, _, (_, _, codes) = model.encode(signed)
    return codes.reshape(pictures.shape[0], -1)


def pictures_of(vae: Any, codes: Any) -> Any:
    """int64 (rows, codes) -> uint8 (rows, height, width, 3)."""
    made = vae.decode(codes)
    mean, deviation = getattr(vae, "normalization", None) or ((0.0,) * 3, (1.0,) * 3)
    made = made * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (made.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
