"""Music is that of transformers' own `generate`: the same codes, greedy and guided, and the same sound of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from checkpoints import exports  # noqa: E402
from music_checkpoints import CODES, KINDS, save_musicgen  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.families import musicgen  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402

torch.set_num_threads(1)

Sources = Callable[[str], tuple[Any, Any, mmrt.Pipeline]]
TEXTS = ["slow piano in the rain, with a little bell", "drums", ""]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    made = exports(tmp_path_factory, save_musicgen)

    @cache
    def loaded(kind: str) -> tuple[Any, Any, mmrt.Pipeline]:
        checkpoint, bundle = made(kind)
        with quiet():
            model = transformers.MusicgenForConditionalGeneration.from_pretrained(checkpoint).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        return model, tokenizer, mmrt.load(bundle, threads=1)

    return loaded


def compose(model: Any, tokenizer: Any, texts: list[str], guidance: float, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes (texts, frames, codebooks) and the waveforms (texts, channels, samples)."""
    heard: list[Any] = []
    decode = model.audio_encoder.decode

    def decoded(codes: Any, *rest: Any, **more: Any) -> Any:
        heard.append(codes[0].numpy())
        return decode(codes, *rest, **more)

    model.audio_encoder.decode = decoded
    try:
        with quiet(), torch.no_grad():
            encoded = tokenizer(texts, padding=True, return_tensors="pt")
            found = model.generate(**encoded, do_sample=False, guidance_scale=guidance, max_new_tokens=new)
    finally:
        del model.audio_encoder.decode
    return np.stack(heard, axis=2).reshape(len(texts), -1, heard[0].shape[-1]).swapaxes(1, 2), found.numpy()


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_music(sources: Sources, kind: str, guidance: float) -> None:
    model, tokenizer, pipeline = sources(kind)
    new = 40
    codes, waveforms = compose(model, tokenizer, TEXTS, guidance, new)
    request = {"guidance": guidance, "max_new_tokens": new, "temperature": 0.0}
    found = pipeline.arrays(prompt=TEXTS, **request)
    np.testing.assert_array_equal(found["sequences"], codes)
    assert len(np.unique(codes)) > 20
    for index, sound in enumerate(pipeline.generate(TEXTS, **request).audios):
        wanted = waveforms[index].T if kind == "stereo" else waveforms[index, 0]
        assert sound.samples.shape == wanted.shape
        assert np.linalg.norm(sound.samples - wanted) <= 1e-3 * np.linalg.norm(wanted)
        assert sound.rate == model.config.audio_encoder.sampling_rate


def test_drawn_music(sources: Sources) -> None:
    """Result i is of the seed + i, alone as in a batch; of one code to choose from it is the greedy one."""
    _, _, pipeline = sources("mono")
    found = pipeline.generate(TEXTS[:2], seed=5, num_sounds=2, max_new_tokens=30)
    assert len({each.samples.tobytes() for each in found.audios}) == 4
    request: dict[str, Any] = found.provenance[3]["request"]
    assert (request["seed"], request["top_k"]) == (8, 250)
    np.testing.assert_allclose(pipeline.generate(**request).audio.samples, found.audios[3].samples, atol=1e-5)
    greedy = pipeline.generate(TEXTS[1], temperature=0.0, max_new_tokens=30).audio.samples
    np.testing.assert_allclose(pipeline.generate(TEXTS[1], top_k=1, max_new_tokens=30).audio.samples, greedy, atol=1e-5)


def test_tokens_stream(sources: Sources) -> None:
    """Of the first codebook, as many as there are of all."""
    _, _, pipeline = sources("mono")
    *tokens, done = pipeline.stream(TEXTS[1], temperature=0.0, max_new_tokens=20)
    sequences = pipeline.arrays(prompt=TEXTS[1], temperature=0.0, max_new_tokens=20)["sequences"]
    assert [each.id for each in tokens] == sequences[0, :, 0].tolist()
    assert (done.result.timings["tokens"], done.result.stopped) == (17, ["length"])


def test_what_is_refused(sources: Sources) -> None:
    _, _, pipeline = sources("mono")
    with pytest.raises(RequestError, match="max_new_tokens is 5, wanted 7 to 127"):
        pipeline.generate("drums", max_new_tokens=5)
    with pytest.raises(RequestError, match="at most 4096 are allowed"):
        pipeline.generate("drums " * 5000)
    with pytest.raises(RequestError, match="prompt is missing"):
        pipeline.generate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token_id": 3}, "eos_token_id is set"),
        ({"pad_token_id": 3}, "decoder_start_token_id is 64, pad_token_id 3, wanted the same id"),
    ],
)
def test_checkpoints_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import json

    with quiet():
        folder = save_musicgen(tmp_path / "checkpoint", "mono")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert CODES == 64
    with pytest.raises(ExportError, match=message):
        musicgen.recipe(Checkpoint(folder))
