"""Pictures made larger and cleaner: Swin2SR (arXiv 2209.11345), of any size, large ones in tiles."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.diffusers_reference import test_picture
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.runtime import manifest as m
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import Case

CLASSES = ("Swin2SRForImageSuperResolution",)
_TILE, _SMALLEST, _LARGEST = 256, 96, 4096  # pixels of a tile's sides
_OVERLAP = 48  # of which a network sees little at the border


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    processor = load_processor(checkpoint, "AutoImageProcessor")
    upscaler = Upscaler(model, processor, _padding(checkpoint, model, processor))
    example = torch.randint(0, 256, (2, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Recipe(
        task="image-to-image",
        family="swin2sr",
        inputs={
            "image": m.Image(array="picture", required=True),
            "tile": m.Int(default=_TILE, min=_SMALLEST, max=_LARGEST),
        },
        outputs={"image": m.ImageOutput(source="enlarged")},
        graphs={
            "upscaler": Graph(
                upscaler,
                {"picture": example},
                ("enlarged",),
                {
                    "picture": {0: "pictures", 1: "height", 2: "width"},
                    "enlarged": {0: "pictures", 1: "enlarged_height", 2: "enlarged_width"},
                },
            )
        },
        program=(
            m.Once(
                graphs=("upscaler",),
                tiles=m.Tiles(
                    source="picture",
                    made="enlarged",
                    size="tile",
                    overlap=_OVERLAP,
                    multiple=upscaler.multiple,
                    scale=upscaler.scale,
                ),
            ),
        ),
        reference=lambda: _reference(model, processor, upscaler.scale),
        components=(".",),
    )


def _padding(checkpoint: Checkpoint, model: Any, processor: Any) -> int:
    """To a multiple of what the processor pads pictures. Raises `ExportError` where that is not supported."""
    config, file = model.config, checkpoint.path / "preprocessor_config.json"
    if config.num_channels != 3 or config.num_channels_out != 3:
        raise ExportError(f"{checkpoint.path / 'config.json'}: num_channels is {config.num_channels}, wanted 3")
    multiple = int(getattr(processor, "size_divisor", 0) or getattr(processor, "pad_size", 0) or 0)
    if not processor.do_pad or multiple % config.window_size or not 0 < multiple <= _SMALLEST - _OVERLAP:
        raise ExportError(
            f"{file}: pictures are padded to a multiple of {multiple if processor.do_pad else 1}, wanted one of the "
            f"window's {config.window_size} of at most {_SMALLEST - _OVERLAP}"
        )
    return multiple


class Upscaler(torch.nn.Module):  # type: ignore[misc]
    """picture uint8 (pictures, height, width, 3) -> enlarged uint8 (pictures, scale * height, scale * width, 3)."""

    def __init__(self, model: Any, processor: Any, multiple: int) -> None:
        super().__init__()
        self.model, self.multiple, self.scale = model, multiple, int(model.upscale)
        self.factor = float(processor.rescale_factor) if processor.do_rescale else 1.0

    def forward(self, picture: Any) -> Any:
        height, width = picture.shape[1:3]
        pixels = picture.permute(0, 3, 1, 2).float() * self.factor
        padded = pixels[:, :, self._mirrored(height)][:, :, :, self._mirrored(width)]
        made = self.model(pixel_values=padded).reconstruction[:, :, : height * self.scale, : width * self.scale]
        return _pixels(made)

    def _mirrored(self, length: Any) -> Any:
        """The places of an axis, on to the next multiple and back from its end, again and again where it is short."""
        place = torch.arange((length // self.multiple + 1) * self.multiple)
        place = torch.remainder(place, torch.full((1,), 2 * length))
        return torch.where(place < length, place, 2 * length - 1 - place)


def _pixels(made: Any) -> Any:
    """As transformers' documentation makes a picture of it."""
    return (made.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _reference(model: Any, processor: Any, scale: int) -> Golden:
    """What transformers' own processor and forward pass give."""
    picture = test_picture(60, 44)
    pictures = np.stack([picture, picture[::-1, :, ::-1]])
    with quiet(), torch.no_grad():
        given = processor(images=[Image.fromarray(each) for each in pictures], return_tensors="pt")
        made = model(**given).reconstruction[:, :, : 44 * scale, : 60 * scale]
    enlarged = np.ascontiguousarray(_pixels(made).numpy())
    arrays = {
        "graph/upscaler/0/in/picture": pictures,
        "graph/upscaler/0/out/enlarged": enlarged,
        "run/pictures/in/image": pictures,
        "run/pictures/out/enlarged": enlarged,
    }
    source = f"transformers {version('transformers')}, torch {torch.__version__}, fp32 on cpu"
    return Golden(source, arrays, (Case(name="pictures", request={}),))
