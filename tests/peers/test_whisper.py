"""Speech becomes the tokens that transformers' own `generate` gives, in fp32, from the samples on."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from checkpoints import export_bundle, export_half  # noqa: E402
from whisper_checkpoints import KINDS, LANGUAGES, RATE, SECONDS, save_whisper  # noqa: E402

import mmrt  # noqa: E402
from mmrt.cli.main import cli  # noqa: E402
from mmrt.cli.subtitles import SUBTITLES  # noqa: E402
from mmrt.export.families.whisper import LogMel  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime.bundle import Bundle  # noqa: E402
from mmrt.runtime.errors import RequestError  # noqa: E402
from mmrt.runtime.events import Done, Token  # noqa: E402
from mmrt.runtime.receipt import read_receipt  # noqa: E402

torch.set_num_threads(1)
LENGTHS = (1, 31, 100)  # the buffers have 32 places, or 64 at first and then 128


def recordings(count: int = 4) -> list[Any]:
    """Of several lengths: tones that rise, noise, a click in silence, and one that fills the window."""
    rng = np.random.default_rng(0)
    time = np.arange(SECONDS * RATE) / RATE
    tone = 0.3 * np.sin(2 * np.pi * (200 * time + 300 * time**2))
    click = np.zeros(RATE // 2)
    click[1000:1040] = 0.9
    every = [tone[: RATE + 77], rng.normal(0, 0.1, RATE // 3), click, tone[::-1] + rng.normal(0, 0.02, len(time))]
    return [each.astype(np.float32) for each in every][:count]


class Source:
    """transformers' model of a checkpoint, and the bundle that was made of it."""

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        self.checkpoint, self.bundle = checkpoint, bundle
        with quiet():
            self.processor = transformers.WhisperProcessor.from_pretrained(checkpoint)
            self.model = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.pipeline = mmrt.load(bundle, threads=1)

    def theirs(self, audio: list[Any], **options: Any) -> list[tuple[int, ...]]:
        with quiet(), torch.no_grad():
            features = self.processor.feature_extractor(audio, sampling_rate=RATE, return_tensors="pt")
            found = self.model.generate(
                features["input_features"],
                do_sample=False,
                force_unique_generate_call=True,
                return_dict_in_generate=True,
                **options,
            )
        options = {name: value for name, value in options.items() if name in ("task", "language")}
        start = 1 + (2 if options else 0) + 1
        return [_ended(row[start:]) for row in found.sequences.tolist()]

    def timed(self, audio: Any, **options: Any) -> Any:
        """Sequences and segments of one recording of any length."""
        long = len(audio) > SECONDS * RATE
        how = {"truncation": False, "padding": "longest"} if long else {}
        with quiet(), torch.no_grad():
            features = self.processor.feature_extractor(audio, sampling_rate=RATE, return_tensors="pt", **how)
            if self.model.generation_config.is_multilingual:
                options["task"] = "transcribe"
            return self.model.generate(
                features["input_features"], do_sample=False, return_timestamps=True, return_segments=True, **options
            )

    def ours(self, audio: list[Any], **options: Any) -> list[tuple[int, ...]]:
        """What the bundle gives; its text is what transformers makes of these tokens."""
        tokens: dict[int, list[int]] = {}
        for event in self.pipeline.stream(audio=audio, **options):
            if isinstance(event, Token) and event.id is not None:
                tokens.setdefault(event.index, []).append(event.id)
        assert isinstance(event, Done)
        rows = [tuple(tokens[index]) for index in sorted(tokens)]
        decoded = self.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
        times = self.model.generation_config.no_timestamps_token_id + 1
        for row, text, wanted in zip(rows, event.result.texts, decoded, strict=True):
            assert text == wanted or max(row) >= times  # within a character transformers makes two signs of it
        return rows


def _ended(row: list[int]) -> tuple[int, ...]:
    return tuple(row[: row.index(0) + 1] if 0 in row else row)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """Made when first asked for."""

    @cache
    def made(kind: str) -> Source:
        folder = tmp_path_factory.mktemp("whisper")
        with quiet():
            checkpoint = save_whisper(folder / "checkpoint", kind)
        return Source(checkpoint, export_bundle(checkpoint, folder / "bundle.mmrt"))

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_and_beams(sources: Callable[[str], Source], kind: str) -> None:
    """The language is detected, each recording's by itself. Some texts end early, and they differ."""
    source, every, early = sources(kind), set(), 0
    options = {} if kind == "English" else {"task": "transcribe"}
    for beams in (1, 4):
        for count in (1, 4):
            for length in LENGTHS:
                found = source.ours(recordings(count), beams=beams, max_new_tokens=length)
                wanted = source.theirs(recordings(count), num_beams=beams, max_new_tokens=length, **options)
                assert found == wanted, (beams, count, length)
                every |= {*found}
                early += sum(len(each) < length for each in found)
    assert early
    assert len(every) > 5


@pytest.mark.parametrize("task", ["transcribe", "translate"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_and_tasks(sources: Callable[[str], Source], language: str, task: str) -> None:
    source = sources("several languages")
    for beams in (1, 3):
        options = {"language": language, "task": task, "max_new_tokens": 20}
        found = source.ours(recordings(), beams=beams, **options)
        assert found == source.theirs(recordings(), num_beams=beams, **options)


def test_detected_languages_are_transformers(sources: Callable[[str], Source]) -> None:
    """Each recording with the language that transformers detects in it gives what detection gives."""
    source, audio = sources("several languages"), recordings()
    with quiet(), torch.no_grad():
        features = source.processor.feature_extractor(audio, sampling_rate=RATE, return_tensors="pt")
        ids = source.model.detect_language(features["input_features"]).tolist()
    codes = [source.processor.tokenizer.convert_ids_to_tokens(token)[2:-2] for token in ids]
    alone = [source.ours([each], language=code, max_new_tokens=30)[0] for each, code in zip(audio, codes, strict=True)]
    assert alone == source.ours(audio, max_new_tokens=30)


def test_a_recording_twice_in_a_batch(sources: Callable[[str], Source]) -> None:
    source = sources("several languages")
    (alone,) = source.ours(recordings(1), max_new_tokens=20)
    assert source.ours([*recordings(2), *recordings(1)], max_new_tokens=20)[2] == alone


def test_provenance_has_the_recordings_sha256(sources: Callable[[str], Source]) -> None:
    result = sources("several languages").pipeline.generate(audio=recordings(2), max_new_tokens=3)
    first, second = (each["request"]["audio"] for each in result.provenance)
    assert first.startswith("sha256:")
    assert first != second


def test_log_mel_features() -> None:
    """Equal to the feature extractor's within 1e-4, at Whisper's own size and at large-v3's."""
    for bins in (80, 128):
        extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
        rng = np.random.default_rng(1)
        audio = [rng.normal(0, 0.1, 160000), recordings()[0], np.zeros(1600), recordings()[2]]
        wanted = extractor([each.astype(np.float32) for each in audio], sampling_rate=RATE, return_tensors="np")
        filled = np.stack([np.pad(each, (0, 480000 - len(each))) for each in audio]).astype(np.float32)
        found, frames = LogMel(extractor)(torch.from_numpy(filled), torch.full((4,), 480000))
        np.testing.assert_allclose(found, wanted["input_features"], rtol=0, atol=1e-4)
        assert frames.tolist() == [3000] * 4


def test_log_mel_features_of_any_length() -> None:
    """Each recording's in a batch are those that it has alone, and 0 after its end."""
    extractor = transformers.WhisperFeatureExtractor()
    lengths = np.array([500000, 640123, 560159])
    audio = [
        np.random.default_rng(seed).normal(0, 0.1, length).astype(np.float32) for seed, length in enumerate(lengths)
    ]
    filled = np.stack([np.pad(each, (0, lengths.max() - len(each))) for each in audio])
    found, frames = LogMel(extractor)(torch.from_numpy(filled), torch.from_numpy(lengths))
    for each, features, count in zip(audio, found.numpy(), frames.tolist(), strict=True):
        wanted = extractor(each, sampling_rate=RATE, truncation=False, return_tensors="np")["input_features"][0]
        assert wanted.shape[1] == count
        np.testing.assert_allclose(features[:, :count], wanted, rtol=0, atol=1e-4)
        assert not features[:, count:].any()


# ---------------------------------------------------------------- timestamps, and recordings of many windows


def long_recordings() -> list[Any]:
    """Of 1 to 5 windows: what `recordings` has, one after the other, as of one speaker who goes on."""
    short = recordings()
    return [
        np.concatenate([short[3], short[0], short[1]]),
        short[0],
        np.concatenate([short[1], short[3], short[3][::-1], short[2], short[0], short[3]]),
        np.concatenate([short[3], short[3][:100]]),
    ]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_timestamps(sources: Callable[[str], Source], kind: str, beams: int) -> None:
    """Windows, segments and their times are transformers', of short recordings and long ones, in one batch."""
    source = sources(kind)
    every, windows = set(), 0
    for length in LENGTHS:
        audio = [*long_recordings(), *recordings(2)]
        given = {"audio": audio, "timestamps": "yes", "beams": beams, "max_new_tokens": length}
        result, sequences = source.pipeline.generate(**given), source.pipeline.arrays(**given)["sequences"]
        sequences = source.pipeline.arrays(audio=audio, timestamps="yes", beams=beams, max_new_tokens=length)[
            "sequences"
        ]
        for index, each in enumerate(audio):
            wanted = source.timed(each, num_beams=beams, max_new_tokens=length)
            tokens = wanted["sequences"][0].tolist()
            assert sequences[index, : len(tokens)].tolist() == tokens, (index, length)
            assert not sequences[index, len(tokens) :].any()
            segments = [(segment["start"].item(), segment["end"].item()) for segment in wanted["segments"][0]]
            found = [(segment.start, segment.end) for segment in result.segments[index]]
            np.testing.assert_allclose(np.array(found), np.array(segments), atol=1e-6)
            texts = source.processor.tokenizer.batch_decode([each["tokens"] for each in wanted["segments"][0]])
            for segment, text in zip(result.segments[index], texts, strict=True):
                assert segment.text == text or "\ufffd" in text  # within a character transformers makes two signs of it
            every |= {*tokens}
            windows = max(windows, len({segment["result"].data_ptr() for segment in wanted["segments"][0]}))
    assert len(every) > 20
    assert windows > 3


def test_long_recordings_have_timestamps_by_themselves(sources: Callable[[str], Source]) -> None:
    source, audio = sources("several languages"), long_recordings()
    result = source.pipeline.generate(audio=audio, max_new_tokens=30)
    assert result.provenance[1]["request"]["timestamps"] == "yes"
    alone = source.pipeline.generate(audio=audio[2:3], max_new_tokens=30)
    assert alone.texts == result.texts[2:3]
    assert alone.segments == result.segments[2:3]
    assert not source.pipeline.generate(audio=recordings(1), max_new_tokens=30).segments


def test_texts_of_many_windows_stream(sources: Callable[[str], Source]) -> None:
    """What was said of a segment stays, though a window's last words are heard again."""
    source, texts, sequences = sources("several languages"), ["", ""], [[], []]
    for event in source.pipeline.stream(audio=long_recordings()[::2], max_new_tokens=60):
        if isinstance(event, Token):
            texts[event.index] += event.text
            sequences[event.index] += [event.id] if event.id is not None else []
    assert isinstance(event, Done)
    assert texts == event.result.texts
    found = source.pipeline.arrays(audio=long_recordings()[::2], max_new_tokens=60)["sequences"]
    assert [row[: len(each)].tolist() for row, each in zip(found, sequences, strict=True)] == sequences


def test_drawn_texts_of_many_windows(sources: Callable[[str], Source]) -> None:
    """Each of several results of a recording goes its own way through it, and is the seed's."""
    source, given = sources("several languages"), {"temperature": 1.0, "max_new_tokens": 30}
    several = source.pipeline.generate(audio=long_recordings()[:1], num_texts=3, seed=5, **given)
    assert len({*several.texts}) > 1
    alone = source.pipeline.generate(audio=long_recordings()[:1], seed=7, **given)
    assert alone.segments[0] == several.segments[2]


def test_files_on_the_command_line(sources: Callable[[str], Source], tmp_path: Path) -> None:
    """Two files in one batch; another rate is the recording's own."""
    soundfile = pytest.importorskip("soundfile")
    source, paths = sources("several languages"), [tmp_path / "a.wav", tmp_path / "b.flac"]
    for path, rate in zip(paths, (RATE, 8000), strict=True):
        soundfile.write(path, recordings(1)[0][:: RATE // rate], rate)
    words = [word for path in paths for word in ("--audio", str(path))]
    command = ["generate", str(source.bundle), *words, "--max-new-tokens", "6", "--language", "de", "--json"]
    found = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)
    pair = (recordings(1)[0][::2], 8000)
    wanted = source.pipeline.generate(audio=[recordings(1)[0], pair], max_new_tokens=6, language="de")
    assert found["texts"][0] == wanted.texts[0]
    assert len(found["texts"]) == 2


@pytest.mark.parametrize("ending", ["srt", "vtt"])
def test_subtitles_on_the_command_line(sources: Callable[[str], Source], tmp_path: Path, ending: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    source, path = sources("English"), tmp_path / "a.wav"
    soundfile.write(path, long_recordings()[0], RATE, subtype="FLOAT")
    output = tmp_path / f"a.{ending}"
    command = ["generate", str(source.bundle), "--audio", str(path), "--max-new-tokens", "50", "-o", str(output)]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).stdout == ""
    segments = source.pipeline.generate(audio=long_recordings()[0], max_new_tokens=50).segments[0]
    assert output.read_text(encoding="utf-8") == SUBTITLES[f".{ending}"](segments)
    again = CliRunner().invoke(cli, [*command, "--audio", str(path)])
    assert "2 recordings are given, wanted one" in str(again.exception)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {  # request, what the message says
    "none": ({}, "audio is missing"),
    "no samples": ({"audio": np.zeros(0, np.float32)}, "has no samples"),
    "no recording": ({"audio": __file__}, "not a recording"),
    "too long": ({"audio": (np.zeros(3601 * 1000, np.float32), 1000)}, r"audio is 3601 s long, at most 3600 s"),
    "long, without timestamps": (
        {"audio": np.zeros(SECONDS * RATE + 1, np.float32), "timestamps": "no"},
        "timestamps is 'no', wanted 'yes' where audio is longer than 2 s",
    ),
    "beams with timestamps": (
        {"audio": recordings(1), "timestamps": "yes", "beams": 2, "num_texts": 2},
        "2 results of a recording with timestamps",
    ),
    "an empty list": ({"audio": []}, "audio is an empty list"),
    "unknown language": ({"audio": recordings(1), "language": "xx"}, "language is 'xx'"),
    "no room": ({"audio": recordings(1), "max_new_tokens": 125}, "max_new_tokens is 125"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(sources: Callable[[str], Source], name: str) -> None:
    request, message = ERRORS[name]
    with pytest.raises(RequestError, match=message):
        sources("several languages").pipeline.generate(**request)


# ---------------------------------------------------------------- in fp16


def test_in_fp16_tokens_part_only_where_they_were_not_clear(sources: Callable[[str], Source], tmp_path: Path) -> None:
    """With timestamps too, of which transformers' scores of every window say it."""
    source = sources("large")
    bundle = export_half(source.checkpoint, source.bundle, tmp_path / "half.mmrt")
    checks = {check.what: check for check in read_receipt(Bundle(bundle)).checks if check.precision == "fp16"}
    assert all(check.passed for check in checks.values())
    parted = [check.margin for what, check in checks.items() if "timestamps: sequences" in what]
    assert any(margin is not None and 0 < margin < 0.12 for margin in parted)


def test_margins_are_the_likeliest_tokens_lead(sources: Callable[[str], Source]) -> None:
    """In the first window, less where a timestamp might have come, or where what was left out decides what follows."""
    source = sources("large")
    with np.load(source.bundle / "golden.npz") as golden:
        tokens, margins = (golden[f"run/timestamps/{kind}/sequences"] for kind in ("out", "margin"))
        features = torch.from_numpy(golden["graph/features/0/out/features"])
    assert margins.shape == (len(tokens), tokens.shape[1] + 1)
    with quiet(), torch.no_grad():
        found = source.model.generate(
            features, return_timestamps=True, do_sample=False, max_new_tokens=tokens.shape[1], output_scores=True,
            output_logits=True, return_dict_in_generate=True, force_unique_generate_call=True, task="transcribe",
        )  # fmt: skip
    best = torch.stack([step.topk(2).values for step in found.scores], dim=1)
    lead = ((best[..., 0] - best[..., 1]) / torch.stack([step.std(dim=1) for step in found.logits], dim=1)).numpy()
    start = found.sequences.shape[1] - len(found.scores)
    for row, new in enumerate(found.sequences[:, start:].numpy()):
        least = min(len(new), tokens.shape[1])
        alike = int((np.append(new[:least] == tokens[row, :least], False)).argmin())
        assert alike > 3
        assert (margins[row, :alike] <= lead[row, :alike] + 1e-4).all()
        assert np.isclose(margins[row, :alike], lead[row, :alike], atol=1e-4).mean() > 0.5
