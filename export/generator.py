"""A recipe for generators such as GANs': one pass from noise, and a class or a text, to a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import read_back
from mmrt.export.trial import check_module
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError, RequestError
from mmrt.runtime.receipt import Case
from mmrt.runtime.tokenizer import Tokenizer

_SEED, _COUNT = 7, 2  # of the receipts; results of each text
_IDS = "prompt_ids"
_Arrays = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TextEncoder:
    """What reads a generator's texts.

    `tokenizer` is a tokenizer.json's content, and how texts become ids with it, as `tokenizer_file` and
    `source_tokenizer` give them. `module` takes those, int64 (texts, tokens), and, where they have a mask, it too, bool
    like them -> what the generator takes of each text: a tensor, or several in a tuple, such as a vector of the
    text, one of each token, and the mask. `examples` are texts for the receipts: of different lengths, if with a mask.
    """

    module: torch.nn.Module
    tokenizer: tuple[bytes, m.Tokenize]
    examples: tuple[str, ...]

    def read(self) -> _Arrays:
        """The examples as the module takes them. Raises `ExportError`."""
        content, tokenize = self.tokenizer
        if not self.examples or isinstance(self.examples, str):
            raise ExportError(f"text_encoder: examples is {self.examples!r}, wanted texts that the generator knows")
        try:
            ids, mask = read_back(content, lambda file: Tokenizer(file, tokenize))(self.examples)
        except RequestError as error:
            raise ExportError(f"text_encoder: of the examples, {error}") from None
        return {_IDS: torch.from_numpy(ids)} | ({tokenize.mask: torch.from_numpy(mask)} if tokenize.mask else {})

    def encode(self, given: _Arrays) -> _Arrays:
        """What the module makes of texts that were read, `context_0` and so on. Raises `ExportError`."""
        found = _call("text_encoder", self.module, given)
        found = tuple(found) if isinstance(found, tuple | list) else (found,)
        if strange := [each for each in found if not isinstance(each, torch.Tensor)]:
            raise ExportError(f"text_encoder: gives {type(strange[0]).__name__}, wanted a tensor or a tuple of them")
        return {f"context_{place}": tensor for place, tensor in enumerate(found)}

    def shortest(self, given: _Arrays) -> tuple[int, _Arrays]:
        """The place of the shortest example, and that alone, without padding. Raises `ExportError` where there is none.

        given: what was read, with a mask.
        """
        ids, mask = given.values()
        lengths = mask.sum(dim=1)
        place, length = int(lengths.argmin()), max(int(lengths.min()), 1)
        if length == ids.shape[1]:
            raise ExportError("text_encoder: all examples have the same number of tokens, wanted different ones")
        return place, {name: tensor[place : place + 1, :length] for name, tensor in given.items()}


def generator(
    module: torch.nn.Module,
    latents: Sequence[int],
    classes: Sequence[str] = (),
    text: TextEncoder | None = None,
    notes: Sequence[str] = (),
) -> Recipe:
    """A recipe for `module`: latents float32 (batch, *latents), normal noise, then with `classes` their numbers, int64
    (batch,), then with `text` what its encoder makes -> pictures float32 (batch, 3 or 1, height, width) in [-1, 1].

    The noise is torch's: a picture of seed s is that of `torch.manual_seed(s); torch.randn(1, *latents)`. Raises
    `ExportError` where the module makes something else, or texts become other pictures among longer ones.
    """
    if len(set(classes)) < len(classes):
        raise ExportError("classes: two have the same name")
    made = _Generator(module, tuple(latents), tuple(classes), text)
    made.check()
    graphs = made.graphs()
    return Recipe(
        task="text-to-image" if text else "image-generation",
        inputs=made.inputs() | {"num_images": m.Count(max=1024), "seed": m.Seed()},
        outputs={"image": m.ImageOutput(source="pixels")},
        graphs=graphs,
        program=(m.Once(graphs=tuple(graphs), draws={"latents": ("batch", *latents)}),),
        reference=made.reference,
        files={text.tokenizer[1].file: text.tokenizer[0]} if text else {},
        notes=tuple(notes),
    )


class Ordered(torch.nn.Module):  # type: ignore[misc]
    """A module of positional arguments, called with arrays of these names."""

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)
        self.eval()

    def forward(self, **arrays: Any) -> Any:
        return self.module(*(arrays[name] for name in self.names))


class Picture(Ordered):
    """The same, with pixels uint8 (batch, height, width, 3) of what the module makes."""

    def forward(self, **arrays: Any) -> Any:
        return _pixels(super().forward(**arrays))


def _pixels(pictures: Any) -> Any:
    coloured = pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return ((coloured / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


class _Generator:
    """A module and what it takes; `texts` are the examples as its encoder takes them, `context` what that makes."""

    def __init__(
        self, module: torch.nn.Module, latents: tuple[int, ...], classes: tuple[str, ...], text: TextEncoder | None
    ) -> None:
        self.module, self.latents, self.classes, self.text = module, latents, classes, text
        for name, each in {"generator": module, **({"text_encoder": text.module} if text else {})}.items():
            check_module(name, each)
        self.texts: _Arrays = text.read() if text else {}
        self.context: _Arrays = text.encode(self.texts) if text else {}
        self.free: dict[str, dict[int, str]] = {name: {0: "rows"} for name in self.context}

    def check(self) -> None:
        """That the module makes pictures, and the same of a text alone and among longer ones."""
        given = self._given(range(2), 0, _two(self.context))
        found = _call("generator", self.module, given)
        legal = isinstance(found, torch.Tensor) and found.ndim == 4 and found.shape[:2] in ((2, 3), (2, 1))
        if not legal or found.dtype != torch.float32:
            what = f"{found.dtype}{tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise ExportError(f"generator: gives {what} for {_shapes(given)}, wanted float32(2, 3 or 1, height, width)")
        if self.text and len(self.texts) > 1:
            self._check_padding(self.text)

    def _check_padding(self, text: TextEncoder) -> None:
        """Name the dimensions that grow with a text's tokens, too."""
        place, alone = text.shortest(self.texts)
        short = text.encode(alone)
        for name, tensor in short.items():
            for axis, (size, padded) in enumerate(zip(tensor.shape, self.context[name].shape, strict=True)):
                if axis and size != padded:
                    self.free[name][axis] = "tokens"
        among = {name: each[place : place + 1] for name, each in self.context.items()}
        first, second = (
            _pixels(_call("generator", self.module, self._given(range(1), 0, each))).int() for each in (short, among)
        )
        if first.shape != second.shape or (first - second).abs().max() > 1:
            raise ExportError(
                f"generator: {text.examples[place]!r} becomes another picture among longer texts: padding, where the "
                "mask is False, may not be seen"
            )

    def _given(self, seeds: Sequence[int], number: int, context: Mapping[str, torch.Tensor]) -> _Arrays:
        """What the module takes for pictures of these seeds, all of one class."""
        noise = [torch.randn(1, *self.latents, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        labels = {"labels": torch.full((len(seeds),), number)} if self.classes else {}
        return {"latents": torch.cat(noise), **labels, **context}

    def inputs(self) -> dict[str, m.Input]:
        found: dict[str, m.Input] = {}
        if self.text:
            found["prompt"] = m.Text(tokenize={_IDS: self.text.tokenizer[1]})
        if self.classes:
            tokens = {name: number for number, name in enumerate(self.classes)}
            found["label"] = m.Choice(default=self.classes[0], choices=self.classes, tokens=tokens, array="labels")
        return found

    def graphs(self) -> dict[str, Graph]:
        found = {}
        context = _two(self.context)
        if self.text:
            texts = _two(self.texts)
            tokens = {0: "rows", 1: "tokens"} if len(texts) > 1 else {0: "rows"}
            free = dict.fromkeys(texts, tokens) | self.free
            found["text_encoder"] = Graph(Ordered(self.text.module, [*texts]), texts, tuple(context), free)
        given = self._given(range(2), 0, context)
        rows = {name: {0: "rows"} for name in (*given, "pixels")}
        found["generator"] = Graph(Picture(self.module, [*given]), given, ("pixels",), rows | self.free)
        return found

    def reference(self) -> Golden:
        """What the modules themselves make of torch's noise and the examples, of the first class and of the last."""
        examples = self.text.examples if self.text else ()
        arrays = dict(_named("graph/text_encoder/0/in", self.texts))
        arrays |= _named("graph/text_encoder/0/out", self.context)
        context = {name: each.repeat_interleave(_COUNT, dim=0) for name, each in self.context.items()}
        seeds = range(_SEED, _SEED + _COUNT * max(len(examples), 1))
        cases = []
        for number in sorted({0, max(len(self.classes) - 1, 0)}):
            given = self._given(seeds, number, context)
            pixels = {"pixels": _pixels(_call("generator", self.module, given))}
            name = f"class_{number}" if self.classes else "seed"
            for place, tensors in (("in", given), ("out", pixels)):
                arrays |= _named(f"graph/generator/{number}/{place}", tensors)
            arrays |= _named(f"run/{name}/out", pixels)
            request: dict[str, Any] = {"label": self.classes[number]} if self.classes else {}
            request |= {"prompt": list(examples)} if examples else {}
            cases.append(Case(name=name, request={**request, "seed": _SEED, "num_images": _COUNT}))
        return Golden(f"the modules themselves, torch {torch.__version__}, fp32 on cpu", arrays, tuple(cases))


def _two(tensors: _Arrays) -> _Arrays:
    """Of the first text and of the last."""
    return {name: each[[0, -1]] for name, each in tensors.items()}


def _call(name: str, module: torch.nn.Module, given: _Arrays) -> Any:
    try:
        with torch.no_grad():
            return module(*given.values())
    except Exception as error:  # it is anybody's
        text = " ".join(str(error).split())
        raise ExportError(f"{name}: fails with {_shapes(given)}: {type(error).__name__}: {text}") from error


def _shapes(given: _Arrays) -> str:
    return " and ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())


def _named(place: str, tensors: _Arrays) -> Iterator[tuple[str, AnyArray]]:
    for name, tensor in tensors.items():
        yield f"{place}/{name}", np.ascontiguousarray(tensor.numpy())
