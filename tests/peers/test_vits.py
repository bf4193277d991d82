"""Speech is that of transformers' own `VitsModel`, seed by seed, whatever else is said in the same batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from checkpoints import export_half, exports  # noqa: E402
from speech_checkpoints import KINDS, LETTERS, save_vits  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.characters import character_tokenizer  # noqa: E402
from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.families import vits  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402

torch.set_num_threads(1)

Sources = Callable[[str], tuple[Any, Any, mmrt.Pipeline]]
TEXTS = ["Bad cats, a red deer & a toad: kk!", "c", "  Is SUN on dandelions? 3 times  ", "ka" * 40]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    made = exports(tmp_path_factory, save_vits)

    @cache
    def loaded(kind: str) -> tuple[Any, Any, mmrt.Pipeline]:
        checkpoint, bundle = made(kind)
        with quiet():
            model = transformers.VitsModel.from_pretrained(checkpoint).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        tokenizer.is_uroman = False
        if tokenizer.phonemize:
            tokenizer.phonemize = tokenizer.normalize = False
        return model, tokenizer, mmrt.load(bundle, threads=1)

    return loaded


def speak(model: Any, tokenizer: Any, text: str, seed: int, **options: Any) -> np.ndarray:
    with quiet(), torch.no_grad():
        torch.manual_seed(seed)
        return np.asarray(model(**tokenizer(text, return_tensors="pt"), **options).waveform[0])


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.linalg.norm(found - wanted) <= 1e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_speech(sources: Sources, kind: str) -> None:
    """Texts in one batch are each as long and as loud as alone, and result i is of the seed + i."""
    model, tokenizer, pipeline = sources(kind)
    options, request = ({"speaker_id": 2}, {"speaker": 2}) if kind == "speakers" else ({}, {})
    found = pipeline.generate(TEXTS, seed=5, **request)
    for index, sound in enumerate(found.audios):
        wanted = speak(model, tokenizer, TEXTS[index], 5 + index, **options)
        assert np.abs(wanted).max() > 1e-3
        same(sound.samples, wanted)
        assert sound.rate == model.config.sampling_rate
    same(pipeline.generate(TEXTS[1], seed=6, **request).audio.samples, found.audios[1].samples)


def test_rates_scales_and_speakers(sources: Sources) -> None:
    model, tokenizer, pipeline = sources("speakers")
    text = TEXTS[0]
    for speaker, rate, noise in ((0, 0.5, 0.1), (1, 2.0, 1.3)):
        model.noise_scale, model.noise_scale_duration = noise, noise / 2
        wanted = speak(model, tokenizer, text, 3, speaker_id=speaker, speaking_rate=rate)
        options = {"noise_scale": noise, "duration_noise_scale": noise / 2, "speaking_rate": rate}
        same(pipeline.generate(text, seed=3, speaker=speaker, **options).audio.samples, wanted)
    model.noise_scale, model.noise_scale_duration = model.config.noise_scale, model.config.noise_scale_duration
    first, second = pipeline.generate(text, seed=1, num_sounds=2).audios
    same(second.samples, speak(model, tokenizer, text, 2, speaker_id=0))
    assert first.samples.shape != second.samples.shape or not np.allclose(first.samples, second.samples)


def test_what_is_refused(sources: Sources) -> None:
    _, _, pipeline = sources("MMS")
    for text in ("", "  ", "你好 123"):
        with pytest.raises(RequestError, match="nothing that the model knows"):
            pipeline.generate(["a", text])
    with pytest.raises(RequestError, match="6001 tokens, at most 4097 are allowed"):
        pipeline.generate("a" * 3000)
    with pytest.raises(RequestError, match="speaking_rate is 0"):
        pipeline.generate("a", speaking_rate=0)
    with pytest.raises(RequestError, match="speaker is 3, wanted 0 to 2"):
        sources("speakers")[2].generate("a", speaker=3)


@pytest.mark.parametrize("pad", ["k", "<pad>"])
@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"add_blank": False}, {"language": "ron"}])
def test_tokenizers(tmp_path: Path, pad: str, options: dict[str, Any]) -> None:
    """Ids are proved to be transformers' where the file is made."""
    import json

    characters = LETTERS + "ţA"
    (tmp_path / "vocab.json").write_text(json.dumps({each: place for place, each in enumerate(characters)}))
    tokenizer = transformers.VitsTokenizer(tmp_path / "vocab.json", pad_token=pad, **({"phonemize": False} | options))
    _, spec = character_tokenizer(tokenizer, "text.json", 99, "mask")
    assert spec.needed


def test_odd_upsampling_is_refused(tmp_path: Path) -> None:
    with quiet():
        folder = save_vits(tmp_path / "odd", "MMS", upsample_kernel_sizes=[7, 4])
    with pytest.raises(ExportError, match="upsample_kernel_sizes has 7 for the rate 4"):
        vits.recipe(Checkpoint(folder))


def test_in_fp16_a_sound_is_as_long_as_in_fp32(sources: Sources, tmp_path: Path) -> None:
    """How long is decided in two graphs, of which as much stays in fp32; what speaks is in fp16."""
    folder = sources("MMS")[2].bundle.path
    half = mmrt.load(export_half(folder.parent / "checkpoint", folder, tmp_path / "half.mmrt"), precision="fp16")
    precisions = {name: variant.precision for name, variant in half.variants.items()}
    assert precisions == {"text": "fp16", "durations": "fp32", "speech": "fp16"}
    assert {"choice"} < {island.reason for island in half.variants["text"].islands}
    assert "choice" not in {island.reason for island in half.variants["speech"].islands if island.op == "Conv"}
    for text in TEXTS:
        wanted, found = (each.generate(text, seed=1).audio.samples for each in (sources("MMS")[2], half))
        assert found.shape == wanted.shape
        assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
