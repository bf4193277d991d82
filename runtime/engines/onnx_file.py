"""Which other files an ONNX file names: read from its protobuf, so that none is opened before it was found legal.

ONNX Runtime opens the path that a tensor's `external_data` gives. The onnx package could list these, but the runtime
does without it, and of the protobuf encoding only the nesting of messages matters here.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from mmrt.runtime.errors import BundleError

# message -> {field number: message in that field}, from onnx.proto; tensors are the leaves that name files
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external_data"},
    "external_data": {1: "key", 2: "value"},
}
_DEEPEST = 64


def external_files(path: Path) -> set[str]:
    """The `location`s of its external tensors, relative to its folder. Raises `BundleError` if it is not ONNX."""
    if path.stat().st_size == 0:
        raise BundleError(f"{path}: empty, not an ONNX file")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return set(_locations(data, "model", 0, len(data), 0))
        except (IndexError, ValueError) as error:
            raise BundleError(f"{path}: not an ONNX file: {error}") from None


def _locations(data: mmap.mmap, message: str, start: int, end: int, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError(f"messages are nested more than {_DEEPEST} deep")
    nested = _NESTED[message]
    entry: dict[str, str] = {}
    for number, first, last in _fields(data, start, end):
        child = nested.get(number)
        if child in ("key", "value"):
            entry[child] = data[first:last].decode("utf-8")
        elif child is not None:
            yield from _locations(data, child, first, last, depth + 1)
    if entry.get("key") == "location":
        yield entry.get("value", "")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, first byte, end) of the length-delimited fields between start and end; others are passed over."""
    while start < end:
        tag, start = _varint(data, start)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, start = _varint(data, start)
        elif wire == 1:
            start += 8
        elif wire == 5:
            start += 4
        elif wire == 2:
            length, start = _varint(data, start)
            if start + length > end:
                raise ValueError("a field ends after its message")
            yield number, start, start + length
            start += length
        else:
            raise ValueError(f"wire type {wire} is not in use")
    if start != end:
        raise ValueError("a field ends after its message")


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
