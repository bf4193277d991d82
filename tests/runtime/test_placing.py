"""mmrt.runtime.placing: pictures in texts as so many places, and what a manifest may say of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_autoregress_manifest import MANIFEST

from mmrt.runtime import manifest as m
from mmrt.runtime import manifest_file, media
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.placing import Placed, number, placed, words

PLACING: dict[str, Any] = {
    "image": "image", "word": "<i>", "token": 7, "places": 2, "first": 40, "alone": "[{}]", "tile": "[{row}.{column}{}",
    "line": ";", "last": "!{}]",
}  # fmt: skip
SPEC = m.Placing(**PLACING)
SPLIT = m.Split(size=4, longest=12, resample="bicubic", cut=True)


def test_words() -> None:
    assert words(SPEC, Placed(0, 1, 1)) == "[<i><i>]"
    assert words(SPEC, Placed(9, 2, 1)) == "[1.1<i><i>;[2.1<i><i>;!<i><i>]"
    assert words(SPEC, Placed(0, 1, 2)) == "[1.1<i><i>[1.2<i><i>;!<i><i>]"


def test_numbers_go_on_from_the_pictures_first_tile() -> None:
    assert number(SPEC, [3, 7, 7, 4], Placed(0, 1, 1)) == [3, 40, 41, 4]
    assert number(SPEC, [7, 1, 7, 7, 7, 2, 7, 7], Placed(5, 1, 2)) == [50, 1, 51, 52, 53, 2, 54, 55]
    with pytest.raises(RequestError, match="contains '<i>', which stands for the picture"):
        number(SPEC, [3, 7, 7, 4, 7], Placed(0, 1, 1))


def test_a_picture_that_comes_twice_is_there_once() -> None:
    wide, small = np.zeros((4, 12, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    assert placed([wide, small, wide], 4) == [Placed(0, 1, 3), Placed(4, 1, 1), Placed(0, 1, 3)]
    assert [each.tiles for each in placed([wide, small], 4)] == [4, 1]


def test_tiles_are_cut_row_by_row_and_the_whole_comes_last() -> None:
    picture = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    tiles = media.split(picture, SPLIT)
    assert tiles.shape == (7, 4, 4, 3)
    assert (tiles[1] == picture[:4, 4:8]).all()
    assert (tiles[3] == picture[4:, :4]).all()
    assert (tiles[6] == np.asarray(Image.fromarray(picture).resize((4, 4), Image.Resampling.BICUBIC))).all()
    assert (media.split(picture[:4, :4], SPLIT) == picture[None, :4, :4]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (300, 299), (7, 13)])
def test_no_picture_has_more_tiles_than_the_most(size: tuple[int, int]) -> None:
    fitted = media.fit_split(Image.new("RGB", size), SPLIT)
    assert len(media.split(fitted, SPLIT)) <= SPLIT.most == 10


def _manifest() -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(MANIFEST)
    split = {"size": 4, "longest": 8, "resample": "bicubic", "cut": True}
    found["inputs"]["image"] = {"kind": "image", "array": "pixels", "split": split, "required": True}
    found["inputs"]["text"]["tokenize"]["source_ids"] |= {"prefix": "see <i>: ", "picture": dict(PLACING)}
    return found


def _text(manifest: dict[str, Any]) -> dict[str, Any]:
    text: dict[str, Any] = manifest["inputs"]["text"]["tokenize"]["source_ids"]
    return text


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no picture": (lambda m: m["inputs"].pop("image"), "'image' is no required image with `split`"),
    "a picture that may be missing": (lambda m: m["inputs"]["image"].pop("required"), "is no required image"),
    "a picture in one piece": (lambda m: m["inputs"]["image"].pop("split"), "is no required image with `split`"),
    "two ways": (
        lambda m: m["inputs"]["image"].update(fit={"width": 4, "height": 4, "resample": "box"}),
        "has `fit` or `patches` or `split`, not several",
    ),
    "no place": (lambda m: _text(m).update(prefix=""), "the prefix has not once '<i>'"),
    "two places": (lambda m: _text(m).update(prefix="<i><i>"), "the prefix has not once '<i>'"),
    "no mask": (lambda m: _text(m).pop("mask"), "a text with a picture has a mask"),
    "too many places": (lambda m: _text(m)["picture"].update(places=4), "a picture can have 20 places, of 16"),
    "an output of tiles": (
        lambda m: m["outputs"].update(image={"kind": "image", "from": "pixels"}),
        "'pixels' has no rows for results",
    ),
}


def test_what_is_legal() -> None:
    read = manifest_file.decode(json.dumps(_manifest()).encode())
    assert manifest_file.decode(manifest_file.encode(read)) == read


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not(name: str) -> None:
    manifest = _manifest()
    damage, says = DAMAGES[name]
    damage(manifest)
    with pytest.raises(BundleError) as caught:
        manifest_file.decode(json.dumps(manifest).encode())
    assert says in str(caught.value)
