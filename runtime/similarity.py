"""How well pictures and texts fit, by a bundle that makes vectors of both, such as CLIP's (arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mmrt.runtime.arrays import Float32
from mmrt.runtime.errors import RequestError
from mmrt.runtime.events import Result
from mmrt.runtime.logits import log_softmax
from mmrt.runtime.pipeline import Pipeline


class Scores(NamedTuple):
    """float32 (pictures, texts), both: cosines in [-1, 1]; probabilities, of a text among all or each by itself."""

    similarities: Float32
    probabilities: Float32


def score(pipeline: Pipeline, texts: Sequence[str], pictures: Sequence[Any]) -> Scores:
    """Every picture with every text. Raises `RequestError` where the bundle does not make vectors of both."""
    spec = pipeline.manifest.similarity
    if spec is None:
        raise RequestError(f"{pipeline.manifest.name} does not say how alike pictures and texts are")
    text = np.stack(pipeline.generate(text=list(texts)).outputs[spec.text])
    image = np.stack(pipeline.generate(image=list(pictures)).outputs[spec.image])
    similarities: Float32 = image @ text.T
    logits = similarities * np.float32(spec.scale) + np.float32(spec.bias)
    if spec.probability == "softmax":
        return Scores(similarities, np.exp(log_softmax(logits)))
    return Scores(similarities, np.float32(1) / (np.float32(1) + np.exp(-logits)))


def ranked(result: Result, pipeline: Pipeline, prompt: str | None, keep: int | None = None) -> Result:
    """A result's pictures, those of each text in the order of how well they fit it, the first `keep` of them.

    `prompt` names the text in the result's requests.
    """
    places: dict[str, list[int]] = {}
    for place, provenance in enumerate(result.provenance):
        if prompt is None or prompt not in provenance["request"]:
            raise RequestError("pictures are ranked by the text that they were made of, and these were made of none")
        places.setdefault(provenance["request"][prompt], []).append(place)
    order: list[int] = []
    for text, same in places.items():
        fit = score(pipeline, [text], [result.images[place] for place in same]).similarities[:, 0]
        order += [same[best] for best in np.argsort(-fit, kind="stable")[:keep]]
    return replace(
        result,
        outputs={**result.outputs, "image": [result.images[place] for place in order]},
        provenance=[result.provenance[place] for place in order],
    )
