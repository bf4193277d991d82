"""ONNX files as protobuf: which other files one names, and the sizes of free dimensions written into it.

ONNX Runtime opens the path that a tensor's `external_data` gives: so that none is opened before it was found legal,
they are read here. The onnx package could do all this, but the runtime does without it, and of the protobuf encoding
only the nesting of messages matters here.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
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
# field numbers on the way from a model to a dimension: graph, input or output, type, tensor, shape, dimension
_TO_DIMENSION = ((7,), (11, 12), (2,), (1,), (2,), (1,))
_DIM_VALUE, _DIM_PARAM = 1, 2
_TO_ATTRIBUTE = ((7,), (1,), (5,))  # from a model to a node's attribute: graph, node, attribute
_ATTRIBUTE_NAME = 1


def external_files(path: Path) -> set[str]:
    """The `location`s of its external tensors, relative to its folder. Raises `BundleError` if it is not ONNX."""
    if path.stat().st_size == 0:
        raise BundleError(f"{path}: empty, not an ONNX file")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return set(_locations(data, "model", 0, len(data), 0))
        except (IndexError, ValueError) as error:
            raise BundleError(f"{path}: not an ONNX file: {error}") from None


def fix_dimensions(model: bytes, sizes: Mapping[str, int]) -> bytes:
    """The model with numbers in place of these free dimensions' names, at its inputs and outputs."""

    def fix(dimension: bytes) -> bytes:
        names = [dimension[first:last].decode() for number, first, last in _whole(dimension) if number == _DIM_PARAM]
        known = [sizes[name] for name in names if name in sizes]
        return bytes([_DIM_VALUE << 3]) + _encoded(known[0]) if known else dimension

    return _edited(model, _TO_DIMENSION, fix) if sizes else model


def drop_attribute(model: bytes, name: str) -> bytes:
    """The model without this attribute of its nodes."""

    def drop(attribute: bytes) -> bytes | None:
        names = (attribute[first:last] for number, first, last in _whole(attribute) if number == _ATTRIBUTE_NAME)
        return None if name.encode() in names else attribute

    return _edited(model, _TO_ATTRIBUTE, drop) if name.encode() in model else model


def _edited(message: bytes, way: tuple[tuple[int, ...], ...], edit: Callable[[bytes], bytes | None]) -> bytes:
    """The message with all messages at the end of the way edited; those that become None are taken out."""
    parts, done = [], 0
    for number, first, last in _whole(message):
        if number not in way[0]:
            continue
        old = message[first:last]
        new = edit(old) if len(way) == 1 else _edited(old, way[1:], edit)
        if new is None or new != old:
            start = first - len(_encoded(last - first))
            tag = len(_encoded(number << 3 | 2))
            parts.append(message[done : start if new is not None else start - tag])
            parts += [_encoded(len(new)), new] if new is not None else []
            done = last
    return b"".join([*parts, message[done:]])


def _whole(message: bytes) -> Iterator[tuple[int, int, int]]:
    return _fields(message, 0, len(message))


def _encoded(value: int) -> bytes:
    """As a varint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


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


def _fields(data: mmap.mmap | bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
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


def _varint(data: mmap.mmap | bytes, start: int) -> tuple[int, int]:
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
