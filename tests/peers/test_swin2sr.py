"""Pictures made larger are those of transformers' Swin2SR, whole and in tiles, of any size."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from checkpoints import export_bundle  # noqa: E402
from PIL import Image  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.families import swin2sr  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402
from mmrt.runtime.events import Done, Step  # noqa: E402
from mmrt.runtime.receipt import replay  # noqa: E402

torch.set_num_threads(1)

VARIANTS: dict[str, dict[str, Any]] = {
    "lightweight": {"upsampler": "pixelshuffledirect", "upscale": 2, "depths": [2, 2], "num_heads": [2, 3]},
    "classical": {"upsampler": "pixelshuffle", "upscale": 4, "num_heads": [2]},
    "real": {"upsampler": "nearest+conv", "upscale": 4, "num_heads": [3], "mlp_ratio": 1.5},
    "compressed": {"upsampler": "pixelshuffle_aux", "upscale": 4, "num_heads": [1]},
}
EXPORTED = ("lightweight", "compressed")
SIZES = ((40, 56), (64, 64), (37, 23), (5, 7), (1, 1), (9, 90))


def save(folder: Path, kind: str) -> Path:
    """A tiny random checkpoint that changes pictures visibly and not beyond recognition."""
    from transformers.models.swin2sr.image_processing_pil_swin2sr import Swin2SRImageProcessorPil

    torch.manual_seed(0)
    config = transformers.Swin2SRConfig(
        **{"embed_dim": 12, "window_size": 8, "image_size": 32, "depths": [2], **VARIANTS[kind]}
    )
    model = transformers.Swin2SRForImageSuperResolution(config)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 4:
                tensor.mul_(4)
    model.save_pretrained(folder)
    Swin2SRImageProcessorPil().save_pretrained(folder)
    return folder


class Source:
    """transformers' model and processor of a checkpoint, and the bundle that is made of it when it is asked for."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        with quiet():
            self.checkpoint = save(folder / "checkpoint", kind)
            self.model = transformers.Swin2SRForImageSuperResolution.from_pretrained(self.checkpoint).eval()
            self.processor = transformers.AutoImageProcessor.from_pretrained(self.checkpoint)

    @cached_property
    def pipeline(self) -> mmrt.Pipeline:
        return mmrt.load(export_bundle(self.checkpoint, self.folder / "bundle.mmrt"), threads=1)

    def enlarged(self, picture: Image.Image) -> Any:
        with torch.no_grad():
            made = self.model(**self.processor(picture, return_tensors="pt")).reconstruction[0]
        scale = self.model.upscale
        made = made[:, : picture.height * scale, : picture.width * scale].clamp(0, 1).numpy()
        return (np.moveaxis(made, 0, -1) * 255.0).round().astype(np.uint8)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    @cache
    def made(kind: str) -> Source:
        return Source(tmp_path_factory.mktemp("swin2sr"), kind)

    return made


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured patches, smooth and sharp."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), np.uint8)
    smooth, sharp = (Image.fromarray(small).resize((width, height), filter) for filter in (3, 0))
    return Image.blend(smooth, sharp, 0.5)


def psnr(found: Any, wanted: Any) -> float:
    assert found.shape == wanted.shape
    return 10 * math.log10(255**2 / max(float(np.mean((found.astype(float) - wanted) ** 2)), 1e-9))


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_module(kind: str, sources: Callable[[str], Source]) -> None:
    """What goes into the graph, before it does."""
    source = sources(kind)
    graph = swin2sr.recipe(Checkpoint(source.checkpoint)).graphs["upscaler"]
    for width, height in SIZES:
        given = picture(width, height)
        with torch.no_grad():
            found = graph.module(torch.from_numpy(np.array(given))[None])[0].numpy()
        assert np.abs(found.astype(int) - source.enlarged(given)).max() <= 1


@pytest.mark.parametrize("kind", EXPORTED)
def test_pictures_of_any_size(kind: str, sources: Callable[[str], Source]) -> None:
    source = sources(kind)
    for width, height in SIZES:
        given = picture(width, height)
        wanted = source.enlarged(given)
        found = source.pipeline.generate(image=given).image
        assert found.size == (width * source.model.upscale, height * source.model.upscale)
        assert psnr(np.asarray(found), wanted) > 50
        assert np.abs(np.asarray(found).astype(int) - wanted).max() <= 1
    assert wanted.std() > 5
    assert all(check.passed for check in replay(source.pipeline))


def test_several(sources: Callable[[str], Source]) -> None:
    """As many as are given, of one size; those that are the same are made once."""
    source = sources("lightweight")
    given = [picture(30, 20, seed) for seed in range(2)]
    found = source.pipeline.generate(image=[given[0], given[1]]).images
    for each, made in zip(given, found, strict=True):
        assert psnr(np.asarray(made), source.enlarged(each)) > 50
    assert len(source.pipeline.generate(image=[given[0], given[0]]).images) == 2
    with pytest.raises(RequestError, match="image has pictures of 30x20 and 20x30, wanted one size"):
        source.pipeline.generate(image=[picture(30, 20), picture(20, 30)])
    with pytest.raises(RequestError, match="image is missing: give a picture"):
        source.pipeline.generate()
    with pytest.raises(RequestError, match="tile is 20, wanted 96 to 4096"):
        source.pipeline.generate(image=given[0], tile=20)


@pytest.mark.parametrize("kind", EXPORTED)
def test_seams_are_not_seen(kind: str, sources: Callable[[str], Source]) -> None:
    source = sources(kind)
    given = picture(230, 170)
    whole = source.pipeline.generate(image=given, tile=256).image
    events = list(source.pipeline.stream(image=given, tile=96))
    assert [(event.number, event.total) for event in events if isinstance(event, Step)] == [
        (number, 12) for number in range(1, 13)
    ]
    assert isinstance(events[-1], Done)
    tiled = np.asarray(events[-1].result.image)
    assert psnr(tiled, np.asarray(whole)) > 45
    near = [48 * source.model.upscale * place for place in (1, 2)]  # where tiles meet
    for first in near:
        seam = slice(first, first + 48 * source.model.upscale)
        assert psnr(tiled[:, seam], np.asarray(whole)[:, seam]) > 45
        assert psnr(tiled[seam], np.asarray(whole)[seam]) > 45


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("preprocessor_config.json", {"do_pad": False}, "padded to a multiple of 1, wanted one of the window's 8"),
        ("preprocessor_config.json", {"size_divisor": 12}, "padded to a multiple of 12"),
        ("config.json", {"num_channels": 1, "num_channels_out": 1}, "mismatched|num_channels is 1, wanted 3"),
    ],
)
def test_what_is_refused(
    sources: Callable[[str], Source], tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sources("lightweight").checkpoint, folder)
    document = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(document))
    with pytest.raises(ExportError) as error:
        swin2sr.recipe(Checkpoint(folder))
    assert re.search(message, str(error.value))
