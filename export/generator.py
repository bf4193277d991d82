"""A recipe for generators such as GANs': one pass from noise, and a class where there are some, to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import Case

_SEED, _COUNT = 7, 2  # of the receipts


def generator(
    module: torch.nn.Module, latents: Sequence[int], classes: Sequence[str] = (), notes: Sequence[str] = ()
) -> Recipe:
    """A recipe for `module`: latents float32 (batch, *latents), normal noise, and with `classes` their numbers, int64
    (batch,) -> pictures float32 (batch, 3 or 1, height, width) in [-1, 1].

    The noise is torch's: a picture of seed s is that of `torch.manual_seed(s); torch.randn(1, *latents)`. Raises
    `ExportError` where the module makes something else.
    """
    given: dict[str, torch.Tensor] = {"latents": torch.zeros(2, *latents)}
    inputs: dict[str, m.Input] = {}
    if classes:
        if len(set(classes)) < len(classes):
            raise ExportError("classes: two have the same name")
        given["labels"] = torch.zeros(2, dtype=torch.int64)
        tokens = {name: number for number, name in enumerate(classes)}
        inputs["label"] = m.Choice(default=classes[0], choices=tuple(classes), tokens=tokens, array="labels")
    picture = Picture(module)
    _check(picture, given)
    rows = {name: {0: "batch"} for name in (*given, "pixels")}
    return Recipe(
        task="image-generation",
        inputs=inputs | {"num_images": m.Count(max=1024), "seed": m.Seed()},
        outputs={"image": m.ImageOutput(source="pixels")},
        graphs={"generator": Graph(picture, given, ("pixels",), rows)},
        program=(m.Once(graphs=("generator",), draws={"latents": ("batch", *latents)}),),
        reference=lambda: _reference(module, latents, classes),
        notes=tuple(notes),
    )


class Picture(torch.nn.Module):  # type: ignore[misc]
    """As the module, but pixels uint8 (batch, height, width, 3)."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)  # as a recipe's check will find it

    def forward(self, latents: Any, labels: Any = None) -> Any:
        return _pixels(self.module(latents) if labels is None else self.module(latents, labels))


def _pixels(pictures: Any) -> Any:
    coloured = pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return ((coloured / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def _check(picture: Picture, given: dict[str, torch.Tensor]) -> None:
    try:
        with torch.no_grad():
            found = picture.module(*given.values())
    except Exception as error:  # it is anybody's
        text = " ".join(str(error).split())
        raise ExportError(f"generator: fails with {_shapes(given)}: {type(error).__name__}: {text}") from error
    legal = isinstance(found, torch.Tensor) and found.ndim == 4 and found.shape[:2] in ((2, 3), (2, 1))
    if not legal or found.dtype != torch.float32:
        what = f"{found.dtype}{tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ExportError(f"generator: gives {what} for {_shapes(given)}, wanted float32(2, 3 or 1, height, width)")


def _shapes(given: dict[str, torch.Tensor]) -> str:
    return " and ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())


def _reference(module: torch.nn.Module, latents: Sequence[int], classes: Sequence[str]) -> Golden:
    """What the module itself makes of torch's noise, of the first class and of the last."""
    arrays: dict[str, AnyArray] = {}
    cases = []
    for number in sorted({0, max(len(classes) - 1, 0)}):
        noise = torch.cat([_noise(latents, _SEED + place) for place in range(_COUNT)])
        labels = (torch.full((_COUNT,), number),) if classes else ()
        with torch.no_grad():
            pixels = np.ascontiguousarray(_pixels(module(noise, *labels)).numpy())
        name = f"class_{number}" if classes else "seed"
        arrays |= {
            f"graph/generator/{number}/in/latents": noise.numpy(),
            **({f"graph/generator/{number}/in/labels": labels[0].numpy()} if labels else {}),
            f"graph/generator/{number}/out/pixels": pixels,
            f"run/{name}/out/pixels": pixels,
        }
        label = {"label": classes[number]} if classes else {}
        cases.append(Case(name=name, request={**label, "seed": _SEED, "num_images": _COUNT}))
    return Golden(f"the module itself, torch {torch.__version__}, fp32 on cpu", arrays, tuple(cases))


def _noise(latents: Sequence[int], seed: int) -> torch.Tensor:
    return torch.randn(1, *latents, generator=torch.Generator().manual_seed(seed))
