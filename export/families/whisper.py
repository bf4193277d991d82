"""Speech to texts: transformers' `WhisperForConditionalGeneration` of any size (arXiv 2212.04356)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mmrt.export import generation, transformers_reference
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import Seq2Seq, cross_attention, decoder_graph, names, new_names
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import target_tokenizer
from mmrt.export.transformers_reference import CLEAR, margins
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray, Float32
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import Case

CLASSES = ("WhisperForConditionalGeneration",)
_TOKENIZER = "tokenizers/text.json"
_TIMED = 24  # new tokens a window in the receipts
_DETECTED = "detected"
_STEP = 0.02  # seconds from timestamp to timestamp, of all Whisper models
_LONGEST = 3600  # seconds of a recording: its features take 2 GB on their way


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    extractor = load_processor(checkpoint, "AutoFeatureExtractor")
    content, text = target_tokenizer(load_processor(checkpoint, "AutoTokenizer"), _TOKENIZER)
    _check(checkpoint, model, extractor)
    prompt, choices = _prompt(checkpoint, model.generation_config)
    limit = int(model.config.max_target_positions)
    decoder, layers = decoder_graph(Seq2Seq(model), model.config.d_model, masked=False)
    cross = names("cross_", layers)
    return Recipe(
        task="automatic-speech-recognition",
        family="whisper",
        inputs={
            "audio": m.Audio(
                array="audio",
                lengths="lengths",
                rate=extractor.sampling_rate,
                window=extractor.chunk_length,
                seconds=max(_LONGEST, extractor.chunk_length),
                timestamps="timestamps",
                required=True,
            ),
            **choices,
            **generation.inputs(model.generation_config, limit - len(prompt), len(prompt)),
        },
        outputs={"text": text},
        graphs={
            "features": Graph(
                LogMel(extractor),
                {"audio": torch.zeros(2, extractor.n_samples), "lengths": torch.full((2,), extractor.n_samples)},
                ("features", "frames"),
                {
                    "audio": {0: "recordings", 1: "samples"},
                    "lengths": {0: "recordings"},
                    "features": {0: "recordings", 2: "time"},
                    "frames": {0: "recordings"},
                },
            ),
            "encoder": Graph(
                Encoder(model),
                {"window": torch.zeros(2, extractor.feature_size, extractor.nb_max_frames)},
                cross,
                {name: {0: "rows"} for name in ("window", *cross)},
            ),
            "decoder": decoder,
        },
        program=(
            m.Once(graphs=("features",)),
            m.Autoregress(
                graphs=("decoder",),
                caches=new_names(layers),
                limit=limit,
                prompt=prompt,
                options=generation.options(),
                windows=_windows(model, extractor),
                **generation.fields(model.generation_config),
            ),
        ),
        reference=lambda: _reference(model, extractor, limit - len(prompt), choices),
        components=(".",),
        files={_TOKENIZER: content},
        notes=(
            f"Recordings of more than {extractor.chunk_length} s are read in windows, each from where the timestamps "
            "of the one before end; `max_new_tokens` is of each. None is read again at a higher temperature.",
        ),
    )


def _check(checkpoint: Checkpoint, model: Any, extractor: Any) -> None:
    """That the encoder takes as much as the feature extractor gives."""
    encoder = model.model.encoder
    frames = encoder.max_source_positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]
    given = extractor.n_samples // extractor.hop_length
    if frames != given or extractor.feature_size != model.config.num_mel_bins:
        raise ExportError(
            f"{checkpoint.path}: the encoder takes {model.config.num_mel_bins} features of {frames} frames, "
            f"preprocessor_config.json says {extractor.feature_size} of {given}"
        )
    if extractor.dither:
        raise ExportError(f"{checkpoint.path}: preprocessor_config.json: dither is {extractor.dither}, wanted 0")


def _prompt(checkpoint: Checkpoint, config: Any) -> tuple[tuple[m.Token, ...], dict[str, m.Choice]]:
    """What stands before a text, and the inputs that choose parts of it: none for models of English alone."""
    start, silence = config.decoder_start_token_id, getattr(config, "no_timestamps_token_id", None)
    if start is None or silence is None:
        missing = "decoder_start_token_id" if start is None else "no_timestamps_token_id"
        raise ExportError(f"{checkpoint.path}: {missing} is not in generation_config.json")
    timed = "yes" if getattr(config, "return_timestamps", False) else "no"
    timestamps = {"timestamps": m.Choice(default=timed, choices=("no", "yes"), tokens={"no": silence}, silent="yes")}
    if not getattr(config, "is_multilingual", hasattr(config, "lang_to_id")):
        return (start, "timestamps"), timestamps
    for field in ("lang_to_id", "task_to_id"):
        if not getattr(config, field, None):
            raise ExportError(f"{checkpoint.path}: {field} is not in generation_config.json")
    languages = {name.strip("<|>"): token for name, token in sorted(config.lang_to_id.items())}
    language = (getattr(config, "language", None) or _DETECTED).strip("<|>")
    task = getattr(config, "task", None) or "transcribe"
    for name, value, known in (("language", language, {_DETECTED, *languages}), ("task", task, config.task_to_id)):
        if value not in known:
            raise ExportError(f"{checkpoint.path}: generation_config.json: {name} is {value!r}, wanted one of {known}")
    return (start, "language", "task", "timestamps"), {
        "language": m.Choice(default=language, choices=(_DETECTED, *languages), tokens=languages, detected=_DETECTED),
        "task": m.Choice(default=task, choices=tuple(config.task_to_id), tokens=dict(config.task_to_id)),
        **timestamps,
    }


def _windows(model: Any, extractor: Any) -> m.Windows:
    encoder, config = model.model.encoder, model.generation_config
    stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]
    return m.Windows(
        source="features",
        lengths="frames",
        window="window",
        size=extractor.nb_max_frames,
        graphs=("encoder",),
        timestamps=m.Timestamps(
            choice="timestamps",
            first=config.no_timestamps_token_id + 1,
            without=config.no_timestamps_token_id,
            frames=stride,
            seconds=_STEP,
            initial=getattr(config, "max_initial_timestamp_index", None),
        ),
    )


class LogMel(torch.nn.Module):  # type: ignore[misc]
    """audio float32 (recordings, samples) in [-1, 1], lengths int64 (recordings,), how many samples are a recording's
    own -> log-mel features float32 (recordings, bins, samples / hop), frames int64 (recordings,).

    As `WhisperFeatureExtractor`, of each recording alone: powers of a short-time Fourier transform with a Hann window
    over the audio, which is mirrored at its ends, are summed by mel filters; their logarithms go no further than 8
    below the largest. What is beyond a recording's own frames is 0.
    """

    basis: torch.Tensor
    filters: torch.Tensor

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.size, self.hop = extractor.n_fft, extractor.hop_length
        angles = torch.outer(torch.arange(self.size // 2 + 1), torch.arange(self.size)).double() * 2 * math.pi
        window = torch.hann_window(self.size, dtype=torch.float64)
        waves = torch.cat([torch.cos(angles / self.size), torch.sin(angles / self.size)]) * window
        self.register_buffer("basis", waves[:, None].float())
        self.register_buffer("filters", torch.from_numpy(extractor.mel_filters.T.copy()).float())

    def forward(self, audio: Any, lengths: Any) -> Any:
        place = torch.arange(-(self.size // 2), audio.shape[1] + self.size // 2)
        last = lengths[:, None] - 1
        mirrored = audio.gather(1, (last - (last - place.abs()).abs()).clamp(min=0))
        waves = functional.conv1d(mirrored[:, None], self.basis, stride=self.hop)[:, :, :-1]
        real, imaginary = waves.chunk(2, dim=1)
        logs = (self.filters @ (real**2 + imaginary**2)).clamp(min=1e-10).log10()
        frames = lengths // self.hop
        own = (torch.arange(logs.shape[2]) < frames[:, None])[:, None]
        largest = logs.where(own, -torch.inf).amax(dim=(1, 2), keepdim=True)
        return ((torch.maximum(logs, largest - 8) + 4) / 4).where(own, 0), frames


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """window float32 (rows, bins, frames) -> the decoder's keys and values of what the encoder hears in it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.decoder = Seq2Seq(model)

    def forward(self, window: Any) -> Any:
        states = self.model.model.encoder(window).last_hidden_state
        return cross_attention(self.decoder, states)


def test_recordings(rate: int, seconds: float) -> Float32:
    """Two recordings, float32 (2, samples): rising tones with their harmonics and gaps, and noise that swells."""
    time = np.arange(int(rate * seconds)) / rate
    harmonics = [np.sin(2 * np.pi * part * (120 * time + 15 * time**2)) / part for part in (1, 2, 3, 5)]
    voice = 0.2 * np.sum(harmonics, axis=0) * (np.sin(3 * time) > -0.4)
    noise = np.random.default_rng(0).normal(0, 0.1, len(time)) * np.sin(np.pi * time / seconds)
    return np.stack([voice, noise]).astype(np.float32)


def _reference(model: Any, extractor: Any, room: int, choices: dict[str, m.Choice]) -> Golden:
    """transformers' answers without timestamps, and with them."""
    rate = extractor.sampling_rate
    recordings = test_recordings(rate, min(6.5, extractor.chunk_length))
    features = extractor(list(recordings), sampling_rate=rate, return_tensors="pt")["input_features"]
    padded = np.pad(recordings, ((0, 0), (0, extractor.n_samples - recordings.shape[1])))
    request = {name: spec.default for name, spec in choices.items()} | {"timestamps": "no"}
    options = {name: value for name, value in request.items() if name == "task"}
    golden = transformers_reference.reference(
        model,
        {"input_features": features},
        {"window": features.numpy()},
        request=request,
        given={"audio": recordings},
        room=room,
        force_unique_generate_call=True,
        return_timestamps=False,
        **options,
    )
    new = min(_TIMED, room)
    with quiet(), torch.no_grad():
        found = model.generate(
            features, return_timestamps=True, do_sample=False, max_new_tokens=new, return_dict_in_generate=True,
            output_scores=True, output_logits=True, **options,
        )  # fmt: skip
    sequences = found["sequences"].numpy()
    arrays = {
        "graph/features/0/in/audio": padded,
        "graph/features/0/in/lengths": np.full(len(padded), extractor.n_samples),
        "graph/features/0/out/features": features.numpy(),
        "run/timestamps/in/audio": recordings,
        "run/timestamps/out/sequences": sequences,
        "run/timestamps/margin/sequences": _margins(found["segments"], sequences.shape[1], model.generation_config),
    }
    timed = {**request, "timestamps": "yes", "beams": 1, "temperature": 0.0, "max_new_tokens": new}
    cases = (*golden.cases, Case(name="timestamps", request=timed))
    return replace(golden, arrays={**golden.arrays, **arrays}, cases=cases)


def _margins(recordings: list[list[dict[str, Any]]], tokens: int, config: Any) -> AnyArray:
    """float32 (recordings, tokens + 1): how clear the source's choice of each token was, from transformers' segments.

    What was written in a window after its last segment is left out, but decides where the next begins: the least clear
    of that counts for the token that follows.
    """
    found = np.full((len(recordings), tokens + 1), CLEAR, np.float32)
    for row, segments in enumerate(recordings):
        place, left = 0, CLEAR
        for segment, after in zip(segments, [*segments[1:], None], strict=True):
            result = segment["result"]
            start = len(result["sequences"]) - len(result["scores"])
            clear = np.minimum(margins(result["scores"], result["logits"]), _kinds(result, start, config))
            first, end = (at - start for at in segment["idxs"])
            found[row, place : place + end - first] = clear[first:end]
            found[row, place] = min(found[row, place], left)
            place, left = place + end - first, CLEAR
            if after is None or after["result"] is not result:
                ends = np.flatnonzero(result["sequences"][start:].numpy() == config.eos_token_id)
                left = clear[end : ends[0] + 1 if len(ends) else None].min(initial=CLEAR)
        found[row, place] = left
    return found


def _kinds(result: dict[str, Any], start: int, config: Any) -> AnyArray:
    """float32 (steps,): how far the likeliest text was from all timestamps together, by which one of both is chosen, in
    standard deviations of the logits; what the timestamps before leave no choice in is clear."""
    first = config.no_timestamps_token_id + 1
    tokens, suppressed = result["sequences"].tolist(), list(config.suppress_tokens or ())
    found = np.full(len(result["scores"]), CLEAR, np.float32)
    for step, (scores, logits) in enumerate(zip(result["scores"], result["logits"], strict=True)):
        written = [token >= first for token in tokens[start : start + step]]
        if not written:
            continue
        closes = written[-1] and not all(written[-2:])  # a text, which no other follows without a timestamp
        allowed = logits.index_fill(0, torch.tensor(suppressed, dtype=torch.int64), -torch.inf)
        text = allowed[config.eos_token_id if closes else 0 : first - 1].max()
        gap = (scores[first:].logsumexp(dim=0) - text).abs() / logits.std()
        found[step] = gap.nan_to_num(nan=CLEAR).clamp(max=CLEAR)
    return found
