"""`mmrt build`: engines of a bundle's graphs, for this machine, into the user's cache.

They are built beside a service, not within it: TensorRT times its kernels while it builds, which is wrong on a GPU that
is busy, and takes memory that the service needs. Until they are there, ONNX Runtime serves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mmrt.runtime import folders, profiles
from mmrt.runtime import manifest as m
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.devices import cuda
from mmrt.runtime.engines import builder, cache
from mmrt.runtime.engines.builder import Building
from mmrt.runtime.engines.nvidia import Kind, Library
from mmrt.runtime.errors import EngineError

_BY_PRECISION = ("fp16", "fp32", "int8")  # what engines are built of, as a GPU has it best first


def build(bundle: Bundle, kind: Kind, asked: profiles.Asked = profiles.NOTHING) -> Iterator[Building]:
    """Build what is not there, graph by graph, yielding how far each is; 1.0 comes when it is in the cache.

    TensorRT's engines are for this machine's GPU, and take the bundle's weights; TensorRT-RTX's are for all GPUs that
    it knows, and have their own. Raises `EngineError` where this machine cannot build them, `RequestError` where
    `asked` is not of this bundle.
    """
    library = Library(kind)
    sizes = profiles.profiles(bundle.manifest, asked)
    capabilities = _capabilities(kind)
    for graph, spec in bundle.manifest.graphs.items():
        onnx = _onnx(graph, spec)
        wanted = m.Build(
            source=bundle.digest(onnx.file),
            version=library.version,
            capabilities=capabilities,
            profiles=sizes[graph],
            stripped=kind == "tensorrt",
        )
        variant = msgspec.structs.replace(onnx, engine=kind, file=f"{graph}.engine", build=wanted, islands=())
        if not cache.has(graph, variant):
            file = bundle.onnx_file(onnx.file)
            with tempfile.TemporaryDirectory(dir=folders.own(folders.cache())) as folder:
                engine = Path(folder) / f"{graph}.engine"
                yield from builder.build(library, graph, spec.of(onnx), file, wanted, engine)
                cache.put(graph, variant, engine)
        yield Building(graph, 1.0)


def _onnx(graph: str, spec: m.Graph) -> m.Variant:
    found = [variant for variant in spec.variants if variant.engine == "onnx"]
    if not found:
        raise EngineError(f"{graph}: the bundle has no ONNX graph of it that an engine could be built of")
    return min(found, key=lambda variant: _BY_PRECISION.index(variant.precision))


def _capabilities(kind: Kind) -> tuple[str, ...]:
    """The GPUs to build for. TensorRT-RTX needs none, and for one that it does not build for together with others, such
    as of 7.5, alone."""
    try:
        place: Any = cuda.gpu(0)
    except EngineError as error:
        if kind == "tensorrt":
            raise EngineError(f"TensorRT builds for the GPU of this machine: {error}") from None
        return builder.CAPABILITIES
    own = "{}.{}".format(*place.driver.capability)
    return builder.CAPABILITIES if kind == "tensorrt-rtx" and own in builder.CAPABILITIES else (own,)
