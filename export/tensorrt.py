"""TensorRT-RTX engines of a bundle's graphs, built ahead of time, on any machine, for all GPUs that they can be for."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import msgspec

from mmrt.runtime import manifest as m
from mmrt.runtime import profiles
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines import builder
from mmrt.runtime.engines.nvidia import Library
from mmrt.runtime.errors import EngineError, ExportError, RequestError
from mmrt.runtime.selection import PRECISIONS


def library() -> Library:
    """What builds the engines. Raises `ExportError` where it is not installed."""
    try:
        return Library("tensorrt-rtx")
    except EngineError as error:
        raise ExportError(str(error)) from None


def sizes(manifest: m.Manifest, asked: profiles.Asked) -> dict[str, tuple[m.Sizes, ...]]:
    """What each graph's engine is built for. Raises `ExportError` where the manifest and the user do not say enough."""
    try:
        return profiles.profiles(manifest, asked)
    except RequestError as error:
        raise ExportError(str(error)) from None


def build(
    library: Library, bundle: Bundle, graph: str, sizes: tuple[m.Sizes, ...]
) -> Generator[builder.Building, None, m.Variant]:
    """Write the engine of a graph into the bundle's folder, yielding how far it is; its variant. Raises `ExportError`
    naming the graph."""
    spec = bundle.manifest.graphs[graph]
    onnx = min(spec.variants, key=lambda variant: PRECISIONS["cuda"].index(variant.precision))
    built = m.Build(
        source=bundle.digest(onnx.file),
        version=library.version,
        capabilities=builder.CAPABILITIES,
        profiles=sizes,
    )
    file = f"engines/{graph}.{onnx.precision}.tensorrt-rtx.engine"
    (bundle.path / file).parent.mkdir(exist_ok=True)
    try:
        yield from builder.build(library, graph, spec.of(onnx), bundle.path / onnx.file, built, bundle.path / file)
    except EngineError as error:
        raise ExportError(str(error)) from None
    return msgspec.structs.replace(onnx, engine="tensorrt-rtx", file=file, build=built)


def without_onnx(folder: Path, manifest: m.Manifest) -> m.Manifest:
    """The manifest without the ONNX graphs that have engines, so that no weights are there twice; their files go."""
    graphs = {}
    for name, graph in manifest.graphs.items():
        engines = tuple(variant for variant in graph.variants if variant.engine != "onnx")
        graphs[name] = msgspec.structs.replace(graph, variants=engines or graph.variants)
    kept = {variant.file for graph in graphs.values() for variant in graph.variants}
    for name in manifest.files:
        if name.startswith("graphs/") and not any(name == each or name.startswith(f"{each}.") for each in kept):
            (folder / name).unlink()
    if not any((folder / "graphs").iterdir()):
        (folder / "graphs").rmdir()
    files = {name: file for name, file in manifest.files.items() if (folder / name).exists()}
    return msgspec.structs.replace(manifest, graphs=graphs, files=files)
