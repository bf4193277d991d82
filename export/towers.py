"""What models of two towers have in common: vectors of texts and pictures in one space, compared by their products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmrt.export.diffusers_reference import test_picture
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray, UInt8
from mmrt.runtime.receipt import Case

TOKENIZER = "tokenizers/text.json"
TEXTS = ("a red heart", "two blue cars in the rain")  # of the receipts


def recipe_of(
    family: str,
    model: Any,
    tokenized: tuple[bytes, m.Tokenize],
    image: m.Image,
    graphs: Mapping[str, Graph],
    reference: Callable[[], Golden],
) -> Recipe:
    """The recipe of two graphs, `text` and `image`, which make `text_embeds` and `image_embeds`.

    `model` has a `logit_scale`, and a `logit_bias` where each text's probability is by itself. `tokenized` are the
    content of the file `TOKENIZER` and how texts become `text_ids`.
    """
    content, tokenize = tokenized
    bias = getattr(model, "logit_bias", None)
    return Recipe(
        task="embedding",
        family=family,
        inputs={"text": m.Text(tokenize={"text_ids": tokenize}, optional=True), "image": image},
        outputs={each: m.VectorOutput(source=each) for each in ("text_embeds", "image_embeds")},
        graphs=graphs,
        program=tuple(m.Once(graphs=(name,), when=name) for name in graphs),
        reference=reference,
        components=(".",),
        files={TOKENIZER: content},
        similarity=m.Similarity(
            text="text_embeds",
            image="image_embeds",
            scale=float(model.logit_scale.exp()),
            bias=0.0 if bias is None else float(bias),
            probability="softmax" if bias is None else "sigmoid",
        ),
    )


def test_pictures() -> UInt8:
    """Two, uint8 (2, 72, 96, 3)."""
    picture = test_picture(96, 72)
    return np.stack([picture, picture[::-1, :, ::-1]])


def golden(
    source: str,
    read: Mapping[str, AnyArray],
    seen: Mapping[str, AnyArray],
    text_embeds: AnyArray,
    image_embeds: AnyArray,
) -> Golden:
    """What the source makes of `TEXTS`, which were `read`, and of `test_pictures()`, which were `seen`."""
    arrays = {f"graph/text/0/in/{name}": array for name, array in read.items()}
    arrays |= {f"graph/image/0/in/{name}": array for name, array in seen.items()}
    for graph, run, made in (("text", "texts", text_embeds), ("image", "pictures", image_embeds)):
        arrays |= {f"{place}/out/{graph}_embeds": made for place in (f"graph/{graph}/0", f"run/{run}")}
    arrays["run/pictures/in/image"] = test_pictures()
    return Golden(source, arrays, (Case(name="texts", request={"text": [*TEXTS]}), Case(name="pictures", request={})))
