"""How long do engines of TensorRT-RTX take to build, without a GPU, and how large are they?

    python benchmarks/engines.py [--work FOLDER] [--models sd15 t5-small whisper-tiny]

Real architectures at their real sizes with random weights, in fp16: every graph becomes an ONNX file, which is kept,
and then an engine for all GPUs that TensorRT-RTX builds for ahead of time, for the sizes that follow from the inputs.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from checkpoints import sd15, text_model, whisper

from mmrt.export import families
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.graph import write_onnx
from mmrt.export.recipe import Graph, Recipe
from mmrt.runtime import manifest as m
from mmrt.runtime import profiles
from mmrt.runtime.engines import builder
from mmrt.runtime.engines.nvidia import Library

MODELS: dict[str, Callable[[Path], Path]] = {
    "sd15": sd15,
    "t5-small": lambda folder: text_model("t5-small", folder),
    "whisper-tiny": lambda folder: whisper("whisper-tiny", folder),
}


def main() -> None:
    """Export what is missing, build, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="where checkpoints and graphs are")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    args = parser.parse_args()
    library = Library("tensorrt-rtx")
    print(f"{library}, GPUs of compute capability {', '.join(builder.CAPABILITIES)}\n")
    print("| model | graph | sizes (min:opt:max) | profiles | ONNX, MB | engine, MB | s | CPU s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.models:
        folder = args.work / f"{name}-engines"
        manifest = graphs(MODELS[name](args.work / name), folder)
        for graph in manifest.graphs:
            print(f"| {name} | {row(library, manifest, graph, folder)} |", flush=True)


def graphs(checkpoint: Path, folder: Path) -> m.Manifest:
    """The manifest of the checkpoint's fp16 graphs, which are exported unless they are there."""
    if (kept := folder / "manifest.json").exists():
        return msgspec.json.decode(kept.read_bytes(), type=m.Manifest)
    folder.mkdir(parents=True, exist_ok=True)
    source = Checkpoint(checkpoint)
    recipe = families.find(source).recipe(source)
    exported = {
        name: half(name, graph, folder / f"{name}.onnx")
        for name, graph in recipe.graphs.items()
        if name != "image_encoder"  # its module makes pixels fp32 by itself
    }
    kept.write_bytes(msgspec.json.encode(manifest := described(recipe, exported)))
    return manifest


def half(name: str, graph: Graph, path: Path) -> m.Graph:
    """Write the graph in fp16; its caches are too, all else at its borders is as it was."""
    caches = {each for each in graph.inputs if {0: "rows", 2: "capacity"}.items() <= graph.free.get(each, {}).items()}
    inputs = {each: tensor.half() if each in caches else tensor for each, tensor in graph.inputs.items()}
    module = Half(graph.module.half(), tuple(each.startswith("new_") for each in graph.outputs))
    made = write_onnx(name, Graph(module, inputs, graph.outputs, graph.free, graph.opset), path)
    gc.collect()
    variant = m.Variant(engine="onnx", precision="fp16", file=path.name)
    return m.Graph(inputs=made[0], outputs=made[1], variants=(variant,))


class Half(torch.nn.Module):  # type: ignore[misc]
    """A module in fp16 that takes and gives fp32, but for outputs that are `kept` as they are."""

    def __init__(self, module: torch.nn.Module, kept: tuple[bool, ...]) -> None:
        super().__init__()
        self.module, self.kept = module, kept

    def forward(self, **arrays: Any) -> Any:
        made = self.module(**{name: each.half() if each.is_floating_point() else each for name, each in arrays.items()})
        outputs = made if isinstance(made, tuple) else (made,)
        return tuple(
            each.float() if each.is_floating_point() and not kept else each
            for each, kept in zip(outputs, self.kept, strict=True)
        )


def described(recipe: Recipe, exported: dict[str, m.Graph]) -> m.Manifest:
    """As much of a manifest as sizes follow from."""
    return m.Manifest(
        format=m.FORMAT,
        task=recipe.task,
        name=recipe.family,
        source=m.Source(family=recipe.family, checkpoint={}, versions={}),
        inputs=dict(recipe.inputs),
        outputs=dict(recipe.outputs),
        graphs=exported,
        program=tuple(stage for stage in recipe.program if {*stage.graphs} <= exported.keys()),
        files={},
    )


def row(library: Library, manifest: m.Manifest, graph: str, folder: Path) -> str:
    """Build one engine: the cells of its row."""
    sizes = profiles.profiles(manifest)[graph]
    build = m.Build(source="0" * 64, version=library.version, capabilities=builder.CAPABILITIES, profiles=sizes)
    onnx, engine = folder / f"{graph}.onnx", folder / f"{graph}.engine"
    large = max(sizes, key=lambda profile: sum(size.max for size in profile.values()))
    ranges = ", ".join(f"{name} {size.min}:{size.opt}:{size.max}" for name, size in large.items())
    weights = sum(file.stat().st_size for file in folder.glob(f"{graph}.onnx*"))
    start, busy = time.perf_counter(), time.process_time()
    try:
        for _ in builder.build(library, graph, manifest.graphs[graph], onnx, build, engine):
            pass
    except Exception as error:
        return f"{graph} | {ranges} | {len(sizes)} | {weights / 1e6:.1f} | {error} | | "
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    size = engine.stat().st_size
    engine.unlink()
    return f"{graph} | {ranges} | {len(sizes)} | {weights / 1e6:.1f} | {size / 1e6:.1f} | {seconds:.1f} | {busy:.1f}"


if __name__ == "__main__":
    main()
