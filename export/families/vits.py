"""Texts to speech: transformers' `VitsModel`, VITS (arXiv 2106.06103) and MMS-TTS (2305.13516)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from mmrt.export.characters import as_written, character_tokenizer
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.vits_modules import Durations, Speech, TextEncoder
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import Case

CLASSES = ("VitsModel",)
_TOKENIZER = "tokenizers/text.json"
_LONGEST = 2 * 2048 + 1  # tokens of 2048 characters with blanks; attention takes their square
_PHONEMES = (
    "Texts are phonemes: this checkpoint was trained on what the package `phonemizer` makes of them with espeak "
    '("en-us", with stress and punctuation), and is not asked for letters.'
)
_LATIN = "Texts are in Latin letters, as the package `uroman` writes them: other letters are left out."


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", "transformers.VitsModel")
    return _Model(checkpoint, model, load_processor(checkpoint, "AutoTokenizer")).recipe()


class _Model:
    """A loaded checkpoint, and what its configuration asks for."""

    def __init__(self, checkpoint: Checkpoint, model: Any, tokenizer: Any) -> None:
        self.checkpoint, self.model, self.tokenizer, self.config = checkpoint, model, tokenizer, model.config
        self.drawn = bool(self.config.use_stochastic_duration_prediction)
        self.speakers = int(self.config.num_speakers)
        for rate, size in zip(self.config.upsample_rates, self.config.upsample_kernel_sizes, strict=True):
            if size < rate or (size - rate) % 2:
                raise ExportError(
                    f"{checkpoint.path / 'config.json'}: upsample_kernel_sizes has {size} for the rate {rate}, "
                    "wanted as much or an even number more"
                )

    def recipe(self) -> Recipe:
        content, tokenize = character_tokenizer(self.tokenizer, _TOKENIZER, _LONGEST, "text_mask")
        notes = (*([_PHONEMES] if self.tokenizer.phonemize else []), *([_LATIN] if self.tokenizer.is_uroman else []))
        return Recipe(
            task="text-to-speech",
            family="vits",
            inputs=self._inputs(tokenize),
            outputs={"audio": m.AudioOutput(source="waveform", rate=self.config.sampling_rate, lengths="samples")},
            graphs=self._graphs(),
            program=(
                m.Once(graphs=("text",)),
                m.Once(graphs=("durations",), draws={"duration_noise": ("batch", 2, "tokens")} if self.drawn else {}),
                m.Once(
                    graphs=("speech",),
                    draws={"prior_noise": ("batch", "frames", self.config.flow_size)},
                    scattered=("prior_noise",),
                ),
            ),
            reference=self._reference,
            components=(".",),
            files={_TOKENIZER: content},
            notes=notes,
        )

    def _inputs(self, tokenize: m.Tokenize) -> dict[str, m.Input]:
        rate, scales = float(self.config.speaking_rate), {"noise_scale": float(self.config.noise_scale)}
        scales |= {"duration_noise_scale": float(self.config.noise_scale_duration)} if self.drawn else {}
        speaker = m.Int(default=0, min=0, max=self.speakers - 1, array="speaker")
        return {
            "text": m.Text(tokenize={"text_ids": tokenize}),
            **({"speaker": speaker} if self.speakers > 1 else {}),
            "speaking_rate": m.Float(default=rate, min=min(0.1, rate), max=max(10.0, rate), array="speaking_rate"),
            **{
                name: m.Float(default=value, min=0.0, max=max(2.0, value), array=name) for name, value in scales.items()
            },
            "num_sounds": m.Count(max=64),
            "seed": m.Seed(),
        }

    def _graphs(self) -> dict[str, Graph]:
        width, latent, tokens, frames = self.config.hidden_size, self.config.flow_size, 7, 11
        texts, rows = {0: "texts", 1: "tokens"}, {0: "rows", 1: "tokens"}
        ids, mask = torch.zeros(2, tokens, dtype=torch.int64), torch.ones(2, tokens, dtype=torch.bool)
        numbers, states = torch.ones(2), torch.zeros(2, tokens, width)
        prior = {name: torch.zeros(2, tokens, latent) for name in ("prior_means", "prior_log_variances")}
        speaker = {"speaker": torch.zeros(2, dtype=torch.int64)} if self.speakers > 1 else {}
        drawn = {"duration_noise": torch.zeros(2, 2, tokens), "duration_noise_scale": numbers} if self.drawn else {}
        each = ("speaker", "speaking_rate", "noise_scale", "duration_noise_scale", "frames")
        one = {name: {0: "rows"} for name in each}
        return {
            "text": Graph(
                TextEncoder(self.model),
                {"text_ids": ids, "text_mask": mask},
                ("states", *prior, "tokens"),
                {"text_ids": texts, "text_mask": texts, "states": texts, **dict.fromkeys(prior, texts)}
                | {"tokens": {0: "texts"}},
            ),
            "durations": Graph(
                Durations(self.model),
                {"states": states, "text_mask": mask, "speaking_rate": numbers, **drawn, **speaker},
                ("durations", "frames"),
                {
                    "states": rows,
                    "text_mask": rows,
                    "duration_noise": {0: "rows", 2: "tokens"},
                    "durations": rows,
                    **one,
                },
            ),
            "speech": Graph(
                Speech(self.model),
                {
                    "durations": torch.ones(2, tokens),
                    "frames": torch.full((2,), tokens),
                    **prior,
                    "prior_noise": torch.zeros(2, frames, latent),
                    "noise_scale": numbers,
                    **speaker,
                },
                ("waveform", "samples"),
                {"durations": rows, **dict.fromkeys(prior, rows), "prior_noise": {0: "rows", 1: "frames"}, **one}
                | {"waveform": {0: "rows", 1: "samples"}, "samples": {0: "rows"}},
            ),
        }

    def _reference(self) -> Golden:
        """Two texts, each by itself, as transformers speaks them; within, what its own parts gave each other."""
        arrays: dict[str, AnyArray] = {}
        cases = []
        for call, text in enumerate(self._texts()):
            speaker = (self.speakers - 1) * call if self.speakers > 1 else None
            with quiet(), as_written(self.tokenizer):
                encoded = self.tokenizer(text, return_tensors="pt")
            with _listening(self.model) as heard, torch.no_grad():
                torch.manual_seed(call)
                found = self.model(encoded["input_ids"], encoded["attention_mask"], speaker_id=speaker)
            arrays |= self._calls(call, encoded, heard, found, speaker)
            arrays[f"run/{call}/out/waveform"] = found.waveform.numpy()
            request = {"text": text, "seed": call} | ({} if speaker is None else {"speaker": speaker})
            cases.append(Case(name=str(call), request=request))
        source = f"transformers {version('transformers')}, torch {torch.__version__}, fp32 on cpu"
        return Golden(source, arrays, tuple(cases))

    def _texts(self) -> list[str]:
        """Texts of what the tokenizer knows."""
        known = [each for each in self.tokenizer.encoder if len(each) == 1 and not each.isspace()]
        words = ["".join(known[start::5][:6]) for start in range(5)]
        return [" ".join(words), words[1]]

    def _calls(self, call: int, encoded: Any, heard: dict[str, Any], found: Any, speaker: int | None) -> dict[str, Any]:
        text, config = heard["text_encoder"], self.config
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        durations = torch.ceil(torch.exp(heard["duration_predictor"]) * (1.0 / config.speaking_rate))[:, 0]
        frames = found.sequence_lengths // math.prod(config.upsample_rates)
        torch.manual_seed(call)
        noise = torch.randn(1, 2, ids.shape[1]) if self.drawn else None
        latent = torch.randn_like(torch.zeros(1, int(frames), config.flow_size).transpose(1, 2)).transpose(1, 2)
        scales = {"duration_noise": noise, "duration_noise_scale": torch.full((1,), float(config.noise_scale_duration))}
        chosen = {} if speaker is None else {"speaker": torch.tensor([speaker])}
        prior = {"prior_means": text.prior_means, "prior_log_variances": text.prior_log_variances}
        states, rate = (
            {"states": text.last_hidden_state},
            {"speaking_rate": torch.full((1,), float(config.speaking_rate))},
        )
        spoken = {"durations": durations, "frames": frames}
        noisy = {"prior_noise": latent, "noise_scale": torch.full((1,), float(config.noise_scale))}
        calls = {
            "text/in": {"text_ids": ids, "text_mask": mask},
            "text/out": states | prior | {"tokens": mask.sum(dim=1)},
            "durations/in": states | {"text_mask": mask} | rate | (scales if self.drawn else {}) | chosen,
            "durations/out": spoken,
            "speech/in": spoken | prior | noisy | chosen,
            "speech/out": {"waveform": found.waveform, "samples": found.sequence_lengths},
        }
        return {
            f"graph/{place.replace('/', f'/{call}/')}/{name}": tensor.contiguous().numpy()
            for place, tensors in calls.items()
            for name, tensor in tensors.items()
        }


@contextmanager
def _listening(model: Any) -> Iterator[dict[str, Any]]:
    """What the model's parts give, by their names."""
    heard: dict[str, Any] = {}

    def listen(name: str) -> Any:
        def hook(_: Any, __: Any, given: Any) -> None:
            heard[name] = given

        return hook

    parts = ("text_encoder", "duration_predictor")
    hooks = [getattr(model, name).register_forward_hook(listen(name)) for name in parts]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
