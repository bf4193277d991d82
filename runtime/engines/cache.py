"""Engines that were built on this machine, in the user's cache: each with an entry that says what it is.

An engine is used only where its entry says that it was built of this graph, by this version of the library, for this
GPU, and where its bytes have the entry's sha256; all that is known before any of it is deserialised.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mmrt.runtime import folders
from mmrt.runtime import manifest as m
from mmrt.runtime.bundle import hash_file
from mmrt.runtime.engines.nvidia import NAMES, Kind
from mmrt.runtime.errors import UnbuiltError
from mmrt.runtime.files import whole


class Entry(m._Struct, frozen=True):
    """An engine of the cache: `NAME.json`, beside the file itself, `NAME.engine`."""

    graph: m.Name
    variant: m.Variant
    file: m.File


@dataclass(frozen=True)
class Wanted:
    """What an engine must be to be used here: of the graph of this name and digest, in this precision, by this version
    of the library, for a GPU of this capability."""

    kind: Kind
    graph: str
    precision: str
    source: str | None  # None: the bundle has no ONNX graph that it could be compared with
    version: str
    capability: str
    bundle: str = "BUNDLE"

    def misfit(self, build: m.Build) -> str | None:
        """Why an engine cannot be used here, in a line; None where it can."""
        name = NAMES[self.kind]
        if self.source not in (None, build.source):
            return f"it was built of another graph (sha256 {build.source[:12]}), this is {str(self.source)[:12]}"
        if build.version != self.version:
            return f"it was built by {name} {build.version}, here is {self.version}"
        if self.capability not in build.capabilities:
            gpus = ", ".join(build.capabilities)
            return f"it was built for GPUs of compute capability {gpus}, this one has {self.capability}"
        return None


def put(graph: str, variant: m.Variant, engine: Path) -> Path:
    """Move an engine file into the cache; an entry with the same key is replaced."""
    folder = _folder()
    name = _name(graph, variant)
    entry = Entry(graph=graph, variant=variant, file=m.File(bytes=engine.stat().st_size, sha256=hash_file(engine)))
    with whole(folder / f"{name}.engine") as file:
        shutil.move(engine, file)
    with whole(folder / f"{name}.json") as file:
        file.write_bytes(msgspec.json.encode(entry))
    return folder / f"{name}.engine"


def has(graph: str, variant: m.Variant) -> bool:
    """Whether an engine was put there of exactly this graph and build."""
    name = _name(graph, variant)
    return any(path.stem == name and _damage(path, entry.file) is None for path, entry in _entries())


def find(wanted: Wanted) -> tuple[Path, m.Build]:
    """The engine that was built last of those that fit. Raises `UnbuiltError` with what is wrong with the nearest."""
    problems = []
    for path, entry in _entries():
        variant = entry.variant
        same = (entry.graph, variant.engine, variant.precision) == (wanted.graph, wanted.kind, wanted.precision)
        if not same or variant.build is None:
            continue
        problem = wanted.misfit(variant.build) or _damage(path, entry.file)
        if problem is None:
            return path, variant.build
        problems.append(problem)
    # of several, an engine of the same graph is nearer than that of another model that calls its graph the same
    nearest = sorted(problems, key=lambda problem: "another graph" in problem)[:1]
    what = f"an engine is there, but {nearest[0]}" if nearest else "no engine was built here"
    raise UnbuiltError(f"{what}: mmrt build {wanted.bundle} --target {wanted.kind}")


def _entries() -> Iterator[tuple[Path, Entry]]:
    """Engines and their entries, the newest first."""
    for path in sorted(_folder().glob("*.json"), key=lambda each: each.stat().st_mtime, reverse=True):
        try:
            yield path.with_suffix(".engine"), msgspec.json.decode(path.read_bytes(), type=Entry)
        except (OSError, msgspec.MsgspecError, ValueError):
            continue  # of another version of mmrt, or damaged: as if it were not there


def _damage(path: Path, file: m.File) -> str | None:
    if not path.is_file() or path.stat().st_size != file.bytes or hash_file(path) != file.sha256:
        return "its file is damaged"
    return None


def _name(graph: str, variant: m.Variant) -> str:
    """Of what an engine is, and not of where it lies."""
    return hashlib.sha256(msgspec.json.encode((graph, variant))).hexdigest()[:32]


def _folder() -> Path:
    return folders.own(folders.cache() / "engines")
