"""Speech to texts: transformers' `WhisperForConditionalGeneration` of any size (arXiv 2212.04356)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mmrt.export import generation, transformers_reference
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import Seq2Seq, cross_attention, decoder_graph, names, new_names
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.tokenizer import target_tokenizer
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import Float32
from mmrt.runtime.errors import ExportError

CLASSES = ("WhisperForConditionalGeneration",)
_TOKENIZER = "tokenizers/text.json"
_DETECTED = "detected"


def claims(checkpoint: Checkpoint) -> bool:
    """Whether config.json names the class."""
    return checkpoint.kind == "transformers" and checkpoint.architecture in CLASSES


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", f"transformers.{checkpoint.architecture}")
    extractor = load_processor(checkpoint, "AutoFeatureExtractor")
    content, text = target_tokenizer(load_processor(checkpoint, "AutoTokenizer"), _TOKENIZER)
    _check(checkpoint, model, extractor)
    prompt, choices = _prompt(checkpoint, model.generation_config)
    limit = int(model.config.max_target_positions)
    decoder, layers = decoder_graph(Seq2Seq(model), model.config.d_model, masked=False)
    audio = torch.zeros(2, extractor.n_samples)
    cross, batch = names("cross_", layers), {0: "recordings"}
    return Recipe(
        task="automatic-speech-recognition",
        family="whisper",
        name=checkpoint.name,
        inputs={
            "audio": m.Audio(
                array="audio", rate=extractor.sampling_rate, seconds=extractor.chunk_length, required=True
            ),
            **choices,
            **generation.inputs(model.generation_config, limit - len(prompt), len(prompt)),
        },
        outputs={"text": text},
        graphs={
            "encoder": Graph(
                Encoder(model, extractor), {"audio": audio}, cross, dict.fromkeys(("audio", *cross), batch)
            ),
            "decoder": decoder,
        },
        program=(
            m.Once(graphs=("encoder",)),
            m.Autoregress(
                graphs=("decoder",),
                caches=new_names(layers),
                limit=limit,
                prompt=prompt,
                options=generation.options(),
                **generation.fields(model.generation_config),
            ),
        ),
        reference=lambda: _reference(model, extractor, limit - len(prompt), choices),
        components=(".",),
        files={_TOKENIZER: content},
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
    if not getattr(config, "is_multilingual", hasattr(config, "lang_to_id")):
        return (start, silence), {}
    for field in ("lang_to_id", "task_to_id"):
        if not getattr(config, field, None):
            raise ExportError(f"{checkpoint.path}: {field} is not in generation_config.json")
    languages = {name.strip("<|>"): token for name, token in sorted(config.lang_to_id.items())}
    language = (getattr(config, "language", None) or _DETECTED).strip("<|>")
    task = getattr(config, "task", None) or "transcribe"
    for name, value, known in (("language", language, {_DETECTED, *languages}), ("task", task, config.task_to_id)):
        if value not in known:
            raise ExportError(f"{checkpoint.path}: generation_config.json: {name} is {value!r}, wanted one of {known}")
    return (start, "language", "task", silence), {
        "language": m.Choice(default=language, choices=(_DETECTED, *languages), tokens=languages, detected=_DETECTED),
        "task": m.Choice(default=task, choices=tuple(config.task_to_id), tokens=dict(config.task_to_id)),
    }


class LogMel(torch.nn.Module):  # type: ignore[misc]
    """audio float32 (recordings, samples) in [-1, 1] -> log-mel features (recordings, bins, samples / hop).

    As `WhisperFeatureExtractor`: powers of a short-time Fourier transform with a Hann window over the audio, which is
    mirrored at its ends, are summed by mel filters; their logarithms go no further than 8 below the largest.
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

    def forward(self, audio: Any) -> Any:
        mirrored = functional.pad(audio[:, None], (self.size // 2, self.size // 2), mode="reflect")
        real, imaginary = functional.conv1d(mirrored, self.basis, stride=self.hop)[:, :, :-1].chunk(2, dim=1)
        logs = (self.filters @ (real**2 + imaginary**2)).clamp(min=1e-10).log10()
        return (torch.maximum(logs, logs.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """audio float32 (recordings, samples) -> the decoder's keys and values of what the encoder hears in it."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__()
        self.features = LogMel(extractor)
        self.model = model
        self.decoder = Seq2Seq(model)

    def forward(self, audio: Any) -> Any:
        states = self.model.model.encoder(self.features(audio)).last_hidden_state
        return cross_attention(self.decoder, states)


def test_recordings(rate: int, seconds: float) -> Float32:
    """Two recordings, float32 (2, samples): rising tones with their harmonics and gaps, and noise that swells."""
    time = np.arange(int(rate * seconds)) / rate
    harmonics = [np.sin(2 * np.pi * part * (120 * time + 15 * time**2)) / part for part in (1, 2, 3, 5)]
    voice = 0.2 * np.sum(harmonics, axis=0) * (np.sin(3 * time) > -0.4)
    noise = np.random.default_rng(0).normal(0, 0.1, len(time)) * np.sin(np.pi * time / seconds)
    return np.stack([voice, noise]).astype(np.float32)


def _reference(model: Any, extractor: Any, room: int, choices: dict[str, m.Choice]) -> Golden:
    rate = extractor.sampling_rate
    recordings = test_recordings(rate, min(6.5, extractor.chunk_length))
    features = extractor(list(recordings), sampling_rate=rate, return_tensors="pt")["input_features"]
    padded = np.pad(recordings, ((0, 0), (0, extractor.n_samples - recordings.shape[1])))
    return transformers_reference.reference(
        model,
        {"input_features": features},
        {"audio": padded},
        request={name: spec.default for name, spec in choices.items()},
        given={"audio": recordings},
        room=room,
        force_unique_generate_call=True,
        **{name: spec.default for name, spec in choices.items() if name == "task"},
    )
