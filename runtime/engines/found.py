"""Where a graph's engine is: in the bundle, or in the cache of those that were built here."""

from __future__ import annotations

from pathlib import Path

from mmrt.runtime import manifest
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines import cache
from mmrt.runtime.engines.nvidia import Library
from mmrt.runtime.errors import EngineError, UnreadyError
from mmrt.runtime.trust import trusted


class Found:
    """An engine's file, what it was built of, and the ONNX file that has its weights if it has not."""

    def __init__(
        self, library: Library, graph: str, variant: manifest.Variant, bundle: Bundle, capability: str
    ) -> None:
        """Raises `EngineError` where nothing fits."""
        comes_with = variant.build is not None
        if comes_with and not trusted(bundle):
            raise UnreadyError(f"the engines of {bundle.path} are code, and not trusted: mmrt trust {bundle.path}")
        source = _source(variant, bundle, graph)
        digest = bundle.digest(source.file) if source is not None else None
        wanted = cache.Wanted(
            library.kind, graph, variant.precision, digest, library.version, capability, str(bundle.path)
        )
        if variant.build is None:
            self.file, self.build = cache.find(wanted)
        elif problem := wanted.misfit(variant.build):
            raise EngineError(f"{variant.file}: {problem}")
        else:
            self.file, self.build = bundle.file(variant.file), variant.build
        self.onnx: Path | None = None
        if self.build.stripped:
            if source is None:
                raise EngineError(f"{variant.file}: its weights are those of an ONNX graph that is not in the bundle")
            self.onnx = bundle.onnx_file(source.file)


def _source(variant: manifest.Variant, bundle: Bundle, graph: str) -> manifest.Variant | None:
    """The ONNX variant of the same precision."""
    for each in bundle.manifest.graphs[graph].variants:
        if each.engine == "onnx" and each.precision == variant.precision:
            return each
    return None
