"""Bundles that make sounds: noise as long as each result wants it, numbers for graphs, receipts, and manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
import sound_bundles

import mmrt
from mmrt.runtime.errors import BundleError, RequestError
from mmrt.runtime.manifest_file import decode
from mmrt.runtime.noise import TorchCpu
from mmrt.runtime.receipt import compare_sound, replay


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_bundles.build(tmp_path_factory.mktemp("sound") / "noisy.mmrt")


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> mmrt.Pipeline:
    return mmrt.load(bundle, threads=1)


def test_each_sound_has_noise_of_its_own_size(pipeline: mmrt.Pipeline) -> None:
    texts = ["a red heart", "car", "two big trees car"[:9]]
    found = pipeline.generate(texts, seed=7, loudness=0.5)
    for index, audio in enumerate(found.audios):
        np.testing.assert_array_equal(audio.samples, sound_bundles.sound(texts[index], 7 + index, 0.5))
        assert audio.rate == sound_bundles.RATE
    assert found.audio.seconds == 3 * sound_bundles.FRAMES / sound_bundles.RATE
    again = pipeline.generate(**found.provenance[1]["request"])
    np.testing.assert_array_equal(again.audio.samples, found.audios[1].samples)


def test_several_of_a_text(pipeline: mmrt.Pipeline) -> None:
    found = pipeline.generate("red car", seed=1, num_sounds=3)
    for index, audio in enumerate(found.audios):
        np.testing.assert_array_equal(audio.samples, sound_bundles.sound("red car", 1 + index, 0.25))


def test_a_text_without_tokens_is_refused(pipeline: mmrt.Pipeline) -> None:
    for text in ("", " "):
        with pytest.raises(RequestError, match="nothing that the model knows"):
            pipeline.generate(text)


def test_receipts(pipeline: mmrt.Pipeline) -> None:
    (check,) = replay(pipeline)
    assert (check.passed, check.snr, check.wanted) == (True, 100.0, "SNR >= 60 dB")
    wave = np.sin(np.arange(1000, dtype=np.float32))
    for error, passed in ((0.5e-3, True), (2e-3, False), (np.nan, False), (np.inf, False)):
        check = compare_sound("wave", wave + np.float32(error), wave, "fp32")
        assert check.passed is passed
    assert not compare_sound("wave", wave[1:], wave, "fp32").passed


def test_lengths_that_are_none(bundle: Path, tmp_path: Path) -> None:
    def none(model: Any) -> None:
        (each,) = (value for value in model.graph.initializer if value.name == "each")
        each.CopyFrom(bundles.numpy_helper.from_array(np.array(-1), "each"))

    bundles.regraph(copy := bundles.copy(bundle, tmp_path), "counter", none)
    with pytest.raises(BundleError, match="wanted 1 or more in each dimension"):
        mmrt.load(copy).generate("a red heart")


def test_lengths_that_no_machine_has(bundle: Path, tmp_path: Path) -> None:
    def vast(model: Any) -> None:
        (each,) = (value for value in model.graph.initializer if value.name == "each")
        each.CopyFrom(bundles.numpy_helper.from_array(np.array(2**55), "each"))

    bundles.regraph(copy := bundles.copy(bundle, tmp_path), "counter", vast)
    with pytest.raises(RequestError, match="GB of noise: ask for fewer or shorter ones"):
        mmrt.load(copy).generate("a red heart")


def test_one_number_for_each_result(pipeline: mmrt.Pipeline) -> None:
    from mmrt.runtime.request import resolve
    from mmrt.runtime.stages import Run

    run = Run(resolve(pipeline.manifest, {"text": ["car", "car"], "seed": 3}))
    noise = [TorchCpu(seed).normal(()) for seed in (3, 4)]
    np.testing.assert_array_equal(run.drawn(("batch",), scattered=False), np.stack(noise))


def edit(path: tuple[str | int, ...], value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        *above, last = path
        for step in above:
            document = document[step]
        document[last] = value

    return change


DRAWS = ("program", 1, "draws", "noise")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (edit((*DRAWS, 2), "samples"), "nothing makes 'samples'"),
        (edit((*DRAWS, 2), "text_ids"), "'text_ids' is made as int64"),
        (edit((*DRAWS, 0), "frames"), "the first dimension of noise is 'batch'"),
        (edit(("program", 1, "scattered"), ["frames"]), "'frames' are not drawn"),
        (edit(("inputs", "loudness", "array"), "noise2"), "nothing makes 'loudness'"),
        (edit(("inputs", "loudness", "array"), "text_ids"), "'text_ids' is made twice"),
        (edit(("inputs", "loudness", "kind"), "int"), "Expected `int`, got `float`"),
        (edit(("outputs", "audio", "rate"), 3), "Expected `int` >= 1000"),
        (edit(("outputs", "audio", "from"), "samples"), "a sound is float32"),
        (edit(("outputs", "audio", "lengths"), "waveform"), "'waveform' is made as float32"),
        (edit(("outputs", "audio", "lengths"), "nowhere"), "nothing makes 'nowhere'"),
        (edit(("graphs", "speaker", "outputs", "waveform", "shape", 1), 9), "a sound is float32"),
    ],
)  # fmt: skip
def test_manifests_that_are_refused(bundle: Path, change: Callable[[Any], None], says: str) -> None:
    import json

    document = json.loads((bundle / "manifest.json").read_text())
    decode(json.dumps(document).encode())
    change(document)
    with pytest.raises(BundleError, match=says):
        decode(json.dumps(document).encode())
