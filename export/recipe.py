"""A recipe: how a model becomes a bundle. A family makes one from a checkpoint; users may make their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from mmrt.runtime import manifest
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.receipt import Case


@dataclass(frozen=True)
class Graph:
    """A torch module and how it is called.

    `inputs` are example inputs; their names are those of `module.forward`'s parameters and of the ONNX inputs.
    `outputs` names what `forward` returns, one tensor or a tuple. `free` names free dimensions of inputs and outputs:
    {"latents": {0: "batch", 2: "latent_height", 3: "latent_width"}}; without, the first of each is free, "rows". An
    example's free dimension should not be 1. `opset` is that of the ONNX file.
    """

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    free: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    opset: int = 23

    def __post_init__(self) -> None:
        if not self.free:
            object.__setattr__(self, "free", {name: {0: "rows"} for name in (*self.inputs, *self.outputs)})


@dataclass(frozen=True)
class Golden:
    """What the source model computes. `arrays` are named as `mmrt.runtime.receipt` says; `source` names its code."""

    source: str
    arrays: Mapping[str, AnyArray]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Recipe:
    """All that a bundle is made of: what a family returns, or a function of one's own.

    `inputs`, `outputs` and `program` are the manifest's; `graphs` are exported one after the other. `components` are
    the folders of the checkpoint whose weights they hold. `files` are further files by their paths in the bundle, such
    as tokenizers. `reference` runs the source model itself on seeded inputs; without, each graph of one's own recipe is
    compared with its module on the example inputs.
    `notes` are paragraphs for the model card; `similarity` is the manifest's.
    """

    task: str
    inputs: Mapping[str, manifest.Input]
    outputs: Mapping[str, manifest.Output]
    graphs: Mapping[str, Graph]
    program: tuple[manifest.Stage, ...]
    reference: Callable[[], Golden] | None = None
    family: str = "own"
    components: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    similarity: manifest.Similarity | None = None
