"""`mmrt build`: engines of a bundle's graphs, for this machine, into the user's cache.

They are built by a process of its own, not within a service: TensorRT times its kernels while it builds, which is
better done beside a GPU that is idle, and takes memory and minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import msgspec

from mmrt.runtime import folders, locks, profiles, selection
from mmrt.runtime import manifest as m
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda
from mmrt.runtime.engines import builder, cache
from mmrt.runtime.engines.builder import Building
from mmrt.runtime.engines.nvidia import NAMES, Kind, Library, capability
from mmrt.runtime.errors import EngineError


@dataclass(frozen=True)
class Waiting:
    """Another process is building on this machine; the graph comes after it."""

    graph: str


def build(
    bundle: Bundle,
    kind: Kind,
    asked: profiles.Asked = profiles.NOTHING,
    precision: str = "auto",
    device: str = "auto",
) -> Iterator[Building | Waiting]:
    """Build what is not there, graph by graph, yielding how far each is; 1.0 comes when it is in the cache.

    TensorRT's engines are for the GPU `device`, and take the bundle's weights; TensorRT-RTX's are for all GPUs that it
    knows, and have their own. `precision` is as in `mmrt.load`. Raises `EngineError` where this machine cannot build
    them, at the end where it can some of them, and `RequestError` where `asked` is not of this bundle.
    """
    library = Library(kind)
    place = _place(kind, device)
    sizes = profiles.profiles(bundle.manifest, asked)
    wanted = selection.precisions(bundle.manifest, precision, "cuda")
    problems = []
    for graph, spec in bundle.manifest.graphs.items():
        try:
            onnx = _onnx(graph, spec, wanted, place)
            built = m.Build(
                source=bundle.digest(onnx.file),
                version=library.version,
                capabilities=_capabilities(kind, place),
                profiles=sizes[graph],
                stripped=kind == "tensorrt",
            )
            yield from _build(library, bundle, graph, onnx, built, place)
        except EngineError as error:
            problems.append(str(error))
    if problems:
        raise EngineError("; ".join(dict.fromkeys(problems)))


def _build(
    library: Library, bundle: Bundle, graph: str, onnx: m.Variant, built: m.Build, place: cuda.Gpu | None
) -> Iterator[Building | Waiting]:
    """One at a time on this machine: they take their times from the GPU."""
    variant = msgspec.structs.replace(onnx, engine=library.kind, file=f"{graph}.engine", build=built, islands=())
    folder = folders.own(folders.cache() / "builds")
    try:
        with (folder / "lock").open("ab") as lock:
            if not cache.has(graph, variant) and not _locked(lock):
                yield Waiting(graph)
                locks.lock(lock, wait=True)
            if not cache.has(graph, variant):
                file = folder / f"{os.getpid()}.engine"
                spec = bundle.manifest.graphs[graph].of(onnx)
                yield Building(graph, 0.0)
                try:
                    yield from builder.build(library, graph, spec, bundle.onnx_file(onnx.file), built, file, place)
                    cache.put(graph, variant, file)
                finally:
                    file.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(f"{graph}: its engine cannot be kept in {folder}: {error.strerror or error}") from None
    yield Building(graph, 1.0)


def _locked(lock: IO[bytes]) -> bool:
    """Whether nobody else builds, as far as the cache's file system lets it know."""
    try:
        return locks.lock(lock)
    except OSError:
        return True


def _onnx(graph: str, spec: m.Graph, wanted: tuple[str, ...], place: cuda.Gpu | None) -> m.Variant:
    """What an engine is built of: the best that the GPU has, if it is for one alone."""
    problem = EngineError(f"{graph}: the bundle has no ONNX graph of it that an engine could be built of")
    for precision in wanted:
        for variant in spec.variants:
            if (variant.engine, variant.precision) == ("onnx", precision):
                try:
                    if place is not None:
                        selection.check_bf16(variant, place)
                    return variant
                except EngineError as error:
                    problem = EngineError(f"{graph}: {error}")
    raise problem


def _place(kind: Kind, device: str) -> cuda.Gpu | None:
    """The GPU to build for. TensorRT-RTX needs none."""
    number = selection.gpu_number(device)
    if number is None and device != "auto":
        raise EngineError(f"device is {device!r}, wanted a GPU: cuda, cuda:1 and so on")
    try:
        return cuda.gpu(number or 0)
    except EngineError as error:
        if kind == "tensorrt-rtx" and number is None:
            return None
        raise EngineError(f"{NAMES[kind]} builds for the GPU of this machine: {error}") from None


def _capabilities(kind: Kind, place: cuda.Gpu | None) -> tuple[str, ...]:
    """The GPUs to build for. TensorRT-RTX does for all that it knows together, but for those such as of 7.5, alone."""
    if place is None:
        return builder.CAPABILITIES
    own = capability(place)
    return builder.CAPABILITIES if kind == "tensorrt-rtx" and own in builder.CAPABILITIES else (own,)
