"""Pictures to pixels: transformers' image processors against the manifest's `Fit`, which the runtime does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mmrt.export.image import Normalize, NormalizePatches, fit, patches  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime import manifest as m  # noqa: E402
from mmrt.runtime import media  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402

PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "bilinear": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "bicubic": ("ViTImageProcessor", {"size": {"height": 40, "width": 24}, "resample": Image.Resampling.BICUBIC}),
    "own mean": (
        "DeiTImageProcessor",
        {
            "size": {"height": 32, "width": 32},
            "do_center_crop": False,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
        },
    ),
    "no scale": (
        "ViTImageProcessor",
        {"size": {"height": 32, "width": 32}, "do_rescale": False, "do_normalize": False},
    ),
    "shortest edge": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    ),
    "crop is smaller": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 31, "width": 32}},
    ),
    "crop is larger": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 32, "width": 32}},
    ),
}
SIZES = [(32, 32), (96, 72), (71, 53), (33, 200), (201, 34), (5, 7), (1, 1), (31, 33), (640, 479), (2, 90)]


def pictures(width: int, height: int) -> dict[str, Image.Image]:
    """Noise, and a smooth gradient."""
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) % 256], -1)
    return {"noise": Image.fromarray(noise), "smooth": Image.fromarray(smooth.astype(np.uint8))}


@pytest.fixture(params=PROCESSORS)
def processor(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """As it is loaded from the file that it saves."""
    kind, options = PROCESSORS[request.param]
    with quiet():
        getattr(transformers, kind)(**options).save_pretrained(tmp_path)
        return transformers.AutoImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_the_processors(processor: Any, size: tuple[int, int]) -> None:
    """They are with Pillow; where torchvision is installed, transformers resizes with that, within one level of 255."""
    spec, normalize = fit(processor), Normalize(processor)
    levels = 1 if transformers.utils.is_torchvision_available() else 0
    error = 1e-5 + levels * normalize.scale / normalize.std.min().item()
    for name, picture in pictures(*size).items():
        with quiet():
            wanted = processor(images=[picture], return_tensors="pt")["pixel_values"]
        pixels = media.fit(picture, spec)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (spec.height, spec.width, 3)
        found = normalize(torch.from_numpy(pixels.copy())[None])
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max().item() <= error, name


def test_the_manifests_entry() -> None:
    made: Callable[..., Any] = transformers.CLIPImageProcessor
    found = fit(made(size={"shortest_edge": 36}, crop_size={"height": 31, "width": 32}))
    assert found == m.Fit(width=32, height=31, resample="bicubic", shortest=36)
    stretched = transformers.ViTImageProcessor(size={"height": 40, "width": 24})
    assert fit(stretched) == m.Fit(width=24, height=40, resample="bilinear")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("do_pad", True, "do_pad is true"),
        ("do_thumbnail", True, "do_thumbnail is true"),
        ("do_resize", False, "do_resize is false"),
        ("size", {"longest_edge": 32}, "size .*longest_edge"),
        ("crop_size", {"height": 8, "width": 8}, "crop_size"),
    ],
)
def test_what_is_not_supported(field: str, value: Any, message: str) -> None:
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.do_center_crop = field == "crop_size"
    setattr(processor, field, value)
    with pytest.raises(ExportError, match=message) as error:
        fit(processor)
    assert "\n" not in str(error.value)


def test_a_picture_that_is_too_long() -> None:
    spec = m.Fit(width=32, height=32, resample="bicubic", shortest=32)
    with pytest.raises(RequestError, match="1x3000 is too long and thin"):
        media.fit(Image.new("RGB", (1, 3000)), spec)


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize(("size", "most"), [(16, 256), (8, 30), (14, 7)])
def test_patches_are_the_processors(size: int, most: int) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    processor = Siglip2ImageProcessorPil(patch_size=size, max_num_patches=most, image_std=[0.4, 0.5, 0.6])
    spec, normalize = patches(processor, "shapes"), NormalizePatches(processor)
    assert spec == m.Patches(size=size, most=most, resample="bilinear", shapes="shapes")
    for sides in [*SIZES, (1500, 40), (41, 1999)]:
        for name, picture in pictures(*sides).items():
            wanted = processor(images=[picture], return_tensors="pt")
            cut, shapes = media.cut([media.fit_patches(picture, spec)], spec)
            values, mask = normalize(torch.from_numpy(np.stack(cut)), torch.from_numpy(shapes))
            assert torch.equal(mask, wanted["pixel_attention_mask"]), (sides, name)
            assert torch.equal(torch.from_numpy(shapes), wanted["spatial_shapes"]), (sides, name)
            assert (values - wanted["pixel_values"]).abs().max() <= 1e-5, (sides, name)
