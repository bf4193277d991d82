"""Requests: what the bundle cannot answer is refused in one line that names the input; the rest is resolved."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mmrt
from mmrt.runtime import manifest, manifest_file, request
from mmrt.runtime.pipeline import Pipeline

HEART = "a red heart"
PICTURE = np.zeros((24, 32, 3), np.uint8)

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown input": ({"stepps": 3}, "'stepps' is not an input of handmade: .*; did you mean 'steps'"),
    "unknown input like no other": ({"qqq": 3}, "'qqq' is not an input of handmade: it has prompt, negative_prompt"),
    "no prompt": ({"prompt": None}, "prompt is missing: give a text"),
    "prompt that is a number": ({"prompt": 7}, "prompt is 7, wanted a text or a list of texts"),
    "prompt of bytes": ({"prompt": b"heart"}, "prompt is b'heart', wanted a text"),
    "prompts of which one is a number": ({"prompt": ["a", 7]}, "wanted a text or a list of texts"),
    "no prompts": ({"prompt": []}, "prompt is an empty list"),
    "lone surrogate": ({"prompt": "a \ud83d heart"}, "prompt is .* which is not valid Unicode"),
    "lists of unequal lengths": (
        {"prompt": ["a"] * 3, "negative_prompt": ["b"] * 2},
        "negative_prompt has 2 values, wanted 1 or 3",
    ),
    "steps as text": ({"steps": "many"}, "steps is 'many', wanted a whole number from 1 to 1000"),
    "steps as a fraction": ({"steps": 2.5}, "steps is 2.5, wanted a whole number"),
    "steps as a truth": ({"steps": True}, "steps is True, wanted a whole number"),
    "steps as an array": ({"steps": np.array([1, 2])}, "steps is .* wanted a whole number"),
    "no steps": ({"steps": 0}, "steps is 0, wanted 1 to 1000"),
    "too many steps": ({"steps": 1001}, "steps is 1001, wanted 1 to 1000"),
    "guidance that is no number": ({"guidance": float("nan")}, "guidance is nan, wanted a number from 0 to 50"),
    "infinite guidance": ({"guidance": float("inf")}, "guidance is inf, wanted a number from 0 to 50"),
    "guidance out of range": ({"guidance": -1}, "guidance is -1, wanted a number from 0 to 50"),
    "guidance as text": ({"guidance": "7.5"}, "guidance is '7.5', wanted a number"),
    "guidance as a truth": ({"guidance": True}, "guidance is True, wanted a number"),
    "guidance as a complex number": ({"guidance": 3 + 1j}, "guidance is .3.1j., wanted a number"),
    "guidance beyond floats": ({"guidance": 10**400}, "guidance is 1000000.*, wanted a number"),
    "unknown sampler": ({"sampler": "magic"}, "sampler is 'magic', wanted one of ddim, ddpm"),
    "sampler that is a list": ({"sampler": ["ddim"]}, "sampler is .'ddim'., wanted one of ddim"),
    "sampler that is an array": ({"sampler": np.array(["a", "b"])}, "sampler is .* wanted one of ddim"),
    "LCM in more steps than it was distilled on": ({"sampler": "lcm", "steps": 51}, "steps is 51, wanted"),
    "size of text": ({"size": "big"}, "size is 'big', wanted WIDTHxHEIGHT"),
    "size of one number": ({"size": 64}, "size is 64, wanted WIDTHxHEIGHT or a pair"),
    "size of three": ({"size": (8, 8, 8)}, "size is .8, 8, 8., wanted WIDTHxHEIGHT or a pair"),
    "size of fractions": ({"size": (8.0, 8.0)}, "size is .*, wanted WIDTHxHEIGHT or a pair"),
    "size that is not a multiple": (
        {"size": (36, 24)},
        "size is 36x24, wanted sides that are multiples of 8 up to 4096",
    ),
    "size of nothing": ({"size": "0x0"}, "size is 0x0, wanted sides that are multiples of 8"),
    "negative size": ({"size": (-8, 8)}, "size is -8x8, wanted sides"),
    "size over the bundle's": ({"size": "8192x8"}, "size is 8192x8, wanted sides that are multiples of 8 up to 4096"),
    "size and number whose memory is absurd": (
        {"size": "4096x4096", "num_images": 4096},
        "4096 results of 4096x4096 need at least 2[0-9]{2} GB of memory, this machine has",
    ),
    "no pictures": ({"num_images": 0}, "num_images is 0, wanted 1 to 4096"),
    "too many pictures": ({"num_images": 4097}, "num_images is 4097, wanted 1 to 4096"),
    "seed too large": ({"seed": 2**64}, "seed is 18446744073709551616, wanted"),
    "seed too small": ({"seed": -(2**63) - 1}, "seed is -9223372036854775809, wanted"),
    "seed as text": ({"seed": "7"}, "seed is '7', wanted a whole number"),
    "seed that leaves no room": (
        {"seed": 2**64 - 1, "num_images": 2},
        "seed 18446744073709551615 leaves no room for 2 results",
    ),
    "unknown generator": ({"generator": "mps"}, "generator is 'mps', wanted one of cpu, cuda"),
    "picture that is not there": ({"image": "/nowhere/at/all.png"}, "/nowhere/at/all.png: no such file"),
    "picture that is a folder": ({"image": "/"}, "/: not a picture that can be read"),
    "picture of an impossible name": ({"image": "a\0b"}, "not a picture that can be read"),
    "picture that is a number": ({"image": 7}, "a picture is a file, a PIL image or a uint8 array, not int"),
    "no image": ({"image": []}, "image is an empty list"),
    "picture in floats": ({"image": PICTURE.astype(np.float32)}, "a picture is float32.24, 32, 3., wanted uint8"),
    "picture with four channels": ({"image": np.zeros((8, 8, 4), np.uint8)}, "a picture is uint8.8, 8, 4., wanted"),
    "picture without channels": ({"image": np.zeros((8, 8), np.uint8)}, "a picture is uint8.8, 8., wanted uint8"),
    "picture of nothing": ({"image": np.zeros((0, 8, 3), np.uint8)}, "a picture is uint8.0, 8, 3., wanted uint8"),
    "picture too small": ({"image": np.zeros((7, 99, 3), np.uint8)}, "image is 99x7 pixels; sides from 8 to 4096"),
    "pictures of another number than prompts": (
        {"prompt": ["a"] * 3, "image": [PICTURE, PICTURE]},
        "image has 2 values, wanted 1 or 3",
    ),
    "strength over one": ({"strength": 1.5, "image": PICTURE}, "strength is 1.5, wanted a number from 0 to 1"),
    "strength that leaves no step": (
        {"strength": 0.1, "image": PICTURE, "steps": 4},
        "strength 0.1 of 4 steps leaves no",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_refused_in_one_line_that_names_it(
    name: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "_memory", lambda: 24 << 30)
    inputs, says = BAD[name]
    with pytest.raises(mmrt.RequestError, match=says) as caught:
        pipeline.generate(**{"prompt": HEART} | inputs)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a picture that can be read"),
        (b"words, not pixels", "not a picture that can be read"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a picture that can be read"),
    ],
)
def test_file_that_is_no_picture_is_refused(data: bytes, says: str, pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(mmrt.RequestError, match=rf"a\.png: {says}"):
        pipeline.generate(HEART, image=tmp_path / "a.png")


def test_truncated_picture_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(mmrt.RequestError, match=r"a\.jpg: not a picture that can be read: .*truncated"):
        pipeline.generate(HEART, image=path)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("times", [1.5, 3])
def test_decompression_bomb_is_refused(times: float, pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (100, 100)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", int(100 * 100 / times))
        with pytest.raises(mmrt.RequestError, match=r"bomb\.png: more than [0-9,]+ pixels, too large a picture"):
            pipeline.generate(HEART, image=path)


def test_text_given_twice_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(mmrt.RequestError, match="prompt is given twice"):
        pipeline.generate(HEART, prompt=HEART)


def test_more_texts_than_inputs_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(mmrt.RequestError, match="3 texts are given, handmade takes 2"):
        pipeline.generate(HEART, "", "more")


def test_stream_refuses_before_it_is_followed(pipeline: Pipeline) -> None:
    with pytest.raises(mmrt.RequestError, match="steps is 0"):
        pipeline.stream(HEART, steps=0)


def test_a_request_error_is_a_value_error(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        pipeline.generate(HEART, steps=0)


# ---------------------------------------------------------------- what is resolved

MANIFEST = manifest_file.decode(
    manifest.msgspec.json.encode(
        bundles.manifest()
        | {
            "files": {
                name: {"bytes": 1, "sha256": "0" * 64}
                for name in ["tokenizers/prompt.json"]
                + [f"graphs/{graph}.fp32.onnx" for graph in bundles.manifest()["graphs"]]
            }
        }
    )
)


def test_what_is_left_out_takes_its_default() -> None:
    resolved = request.resolve(MANIFEST, {"prompt": HEART})
    assert (resolved.batch, resolved.width, resolved.height, resolved.noise) == (1, 32, 24, "cpu")
    assert resolved.values["negative_prompt"] == [""]
    assert resolved.values["steps"] == 4
    assert resolved.values["image"] is None


def test_seeds_are_drawn_anew_where_none_is_given() -> None:
    drawn = {request.resolve(MANIFEST, {"prompt": HEART}).seeds for _ in range(8)}
    assert len(drawn) == 8


def test_seed_zero_is_a_seed() -> None:
    assert request.resolve(MANIFEST, {"prompt": HEART, "seed": 0}).seeds == (0,)


def test_images_of_a_prompt_follow_one_another() -> None:
    resolved = request.resolve(MANIFEST, {"prompt": ["a", "b"], "num_images": 2, "seed": 5})
    assert resolved.values["prompt"] == ["a", "a", "b", "b"]
    assert resolved.values["negative_prompt"] == [""] * 4
    assert resolved.seeds == (5, 6, 7, 8)


@pytest.mark.parametrize(
    ("size", "wanted"), [("64x32", (64, 32)), ("64", (64, 64)), ((64, 32), (64, 32)), ([64, 32], (64, 32))]
)
def test_size_is_width_then_height(size: Any, wanted: tuple[int, int]) -> None:
    resolved = request.resolve(MANIFEST, {"prompt": HEART, "size": size})
    assert (resolved.width, resolved.height) == wanted


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3)])
def test_numpy_integers_are_whole_numbers(number: Any) -> None:
    assert request.resolve(MANIFEST, {"prompt": HEART, "steps": number}).values["steps"] == 3


def test_a_picture_gives_the_size_cut_to_a_multiple() -> None:
    resolved = request.resolve(MANIFEST, {"prompt": HEART, "image": np.zeros((47, 65, 3), np.uint8)})
    assert (resolved.width, resolved.height) == (64, 40)
    assert resolved.values["image"][0].shape == (40, 64, 3)


def test_a_picture_is_resized_to_a_given_size() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    resolved = request.resolve(MANIFEST, {"prompt": HEART, "image": picture, "size": "16x8"})
    wanted = Image.fromarray(picture).resize((16, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resolved.values["image"][0], np.asarray(wanted))


def test_transparency_is_laid_on_white_and_turning_is_obeyed(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    resolved = request.resolve(MANIFEST, {"prompt": HEART, "image": clear})
    assert (resolved.values["image"][0] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.new("RGB", (8, 16)).save(path, exif=exif)
    turned = request.resolve(MANIFEST, {"prompt": HEART, "image": path})
    assert (turned.width, turned.height) == (16, 8)


_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(max_size=4),
    st.lists(st.one_of(st.text(max_size=4), st.integers(), st.none()), max_size=3),
    st.tuples(st.integers(-8, 64), st.integers(-8, 64)),
    st.sampled_from([*bundles.SAMPLERS, "cpu", "cuda", "16x16", object(), {}, 1j]),
)
_names = st.one_of(st.sampled_from([*bundles.manifest()["inputs"]]), st.text(string.ascii_lowercase, max_size=3))


@given(inputs=st.dictionaries(_names, _values, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_request_is_resolved_or_refused_in_one_line(inputs: dict[str, Any]) -> None:
    try:
        resolved = request.resolve(MANIFEST, {"prompt": HEART} | inputs)
    except mmrt.RequestError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert len(resolved.seeds) == resolved.batch == len(resolved.values["prompt"])
    assert resolved.width % 8 == resolved.height % 8 == 0
    for index in range(min(resolved.batch, 3)):
        single = resolved.single(MANIFEST, index, together=False)
        again = request.resolve(MANIFEST, single)
        assert again.single(MANIFEST, 0, together=False) == single
