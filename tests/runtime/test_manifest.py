"""The manifest: its bytes, its promise to older formats, and that nothing but a BundleError comes of wrong ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import bundles
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmrt.runtime import manifest, manifest_file
from mmrt.runtime.checks import legal_path
from mmrt.runtime.errors import BundleError

GOLDEN = Path(__file__).parent / "manifest.format1.json"


def document() -> dict[str, Any]:
    names = ["tokenizers/prompt.json", *(f"graphs/{graph}.fp32.onnx" for graph in bundles.manifest()["graphs"])]
    made = bundles.manifest() | {"files": {name: {"bytes": 1, "sha256": "0" * 64} for name in names}}
    return copy.deepcopy(made)


def test_a_manifest_of_format_1_keeps_its_bytes() -> None:
    data = GOLDEN.read_bytes()
    assert manifest_file.encode(manifest_file.decode(data)) == data


def test_a_manifest_of_format_1_stays_readable() -> None:
    read = manifest_file.decode(GOLDEN.read_bytes())
    assert (read.format, read.task, read.name) == (1, "text-to-image", "golden")
    assert list(read.inputs) == [
        "prompt",
        "negative_prompt",
        "steps",
        "guidance",
        "sampler",
        "size",
        "generator",
        "seed",
    ]
    assert [type(stage) for stage in read.program] == [manifest.Once, manifest.Diffuse, manifest.Once]
    assert str(read.graphs["denoiser"].inputs["latents"]) == "float32(batch, 4, height, width)"


def test_encode_refuses_what_decode_would() -> None:
    read = manifest_file.decode(GOLDEN.read_bytes())
    with pytest.raises(BundleError, match="is not a plain relative path"):
        manifest_file.encode(msgspec.structs.replace(read, files={"../x": manifest.File(bytes=1, sha256="0" * 64)}))


def test_values_cannot_be_changed() -> None:
    read = manifest_file.decode(GOLDEN.read_bytes())
    with pytest.raises(AttributeError):
        read.name = "other"  # type: ignore[misc]


def test_a_cascade_may_use_names_again() -> None:
    made = document()
    made["program"] += made["program"][2:]
    manifest_file.decode(json.dumps(made).encode())


@pytest.mark.parametrize("format_", [2, 10**6])
def test_a_newer_format_is_refused_before_its_fields_are_looked_at(format_: int) -> None:
    with pytest.raises(BundleError, match=rf"format {format_}, mmrt .* reads formats up to 1: use a newer mmrt"):
        manifest_file.decode(json.dumps({"format": format_, "stages": []}).encode())


@given(text=st.text(max_size=30) | st.from_regex(r"[a-zA-Z0-9./_-]{1,20}", fullmatch=True))
@example("a/./b")
@example("a/")
@example(".")
@example("..")
@example("")
@settings(deadline=None)
def test_a_legal_path_stays_inside(text: str) -> None:
    if legal_path(text):
        inside = Path("/bundle").joinpath(text)
        assert str(inside) == f"/bundle/{text}"
        assert inside.resolve().is_relative_to("/bundle")
        assert inside != Path("/bundle")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, each in items for place in places(each, (*path, key))]


PLACES = places(document())
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["prompt", "steps", "latents", "prediction", "context", "image", "once", "batch", "ddim", [], {}]),
    st.lists(st.integers(), max_size=3),
)


@given(place=st.sampled_from(PLACES), junk=JUNK, remove=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_change_is_read_and_written_back_or_refused_in_one_line(
    place: tuple[Any, ...], junk: Any, remove: bool
) -> None:
    changed = document()
    node: Any = changed
    for key in place[:-1]:
        node = node[key]
    if remove:
        del node[place[-1]]
    else:
        node[place[-1]] = junk
    try:
        read = manifest_file.decode(json.dumps(changed).encode())
    except BundleError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert manifest_file.decode(manifest_file.encode(read)) == read


@given(cut=st.integers(0), flip=st.integers(0), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_any_damage_to_the_bytes_is_read_or_refused(cut: int, flip: int, bit: int) -> None:
    data = bytearray(GOLDEN.read_bytes())
    data[flip % len(data)] ^= 1 << bit
    try:
        manifest_file.decode(bytes(data[: cut % (2 * len(data))]))
    except BundleError as error:
        assert str(error).isprintable()  # noqa: PT017
