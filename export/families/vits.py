"""Texts to speech: transformers' `VitsModel`, VITS (arXiv 2106.06103) and MMS-TTS (2305.13516)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers.models.vits import modeling_vits

from mmrt.export.characters import as_written, character_tokenizer
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_processor
from mmrt.export.decoder import mask_for, spread
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.errors import ExportError
from mmrt.runtime.receipt import Case

CLASSES = ("VitsModel",)
_TOKENIZER = "tokenizers/text.json"
_LONGEST = 2 * 2048 + 1  # tokens of 2048 characters with blanks; attention takes their square
_SLOWEST = 2.0**20  # frames of a token
_PHONEMES = (
    "Texts are phonemes: this checkpoint was trained on what the package `phonemizer` makes of them with espeak "
    '("en-us", with stress and punctuation), and is not asked for letters.'
)
_LATIN = "Texts are in Latin letters, as the package `uroman` writes them: other letters are left out."


def claims(checkpoint: Checkpoint) -> bool:
    """Whether config.json names the class."""
    return checkpoint.kind == "transformers" and checkpoint.architecture in CLASSES


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load_model(checkpoint, ".", "transformers.VitsModel")
    for module in [*model.modules()]:
        if parametrize.is_parametrized(module, "weight"):  # weight norm, which would be computed in every call
            parametrize.remove_parametrizations(module, "weight")
    return _Model(checkpoint, model, load_processor(checkpoint, "AutoTokenizer")).recipe()


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """text_ids int64 (texts, tokens), text_mask bool, true at tokens -> states (texts, tokens, width), prior_means and
    prior_log_variances (texts, tokens, latent width), tokens int64 (texts,), how many there are."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.encoder = model, model.text_encoder

    def forward(self, text_ids: Any, text_mask: Any) -> Any:
        allowed = spread(text_mask, text_ids.shape[1])
        found = self.encoder(
            input_ids=text_ids,
            padding_mask=text_mask[:, :, None].float(),
            attention_mask=mask_for(self.model, allowed),
            return_dict=True,
        )
        return found.last_hidden_state, found.prior_means, found.prior_log_variances, text_mask.sum(dim=1)


class Durations(torch.nn.Module):  # type: ignore[misc]
    """states, text_mask, speaking_rate float32 (rows,), where there are speakers speaker int64 (rows,), where durations
    are drawn duration_noise (rows, 2, tokens) and duration_noise_scale (rows,) -> durations float32 (rows, tokens),
    whole numbers of frames, and frames int64 (rows,), their sum."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.predictor = model, model.duration_predictor

    def forward(self, states: Any, text_mask: Any, speaking_rate: Any, **drawn: Any) -> Any:
        mask = text_mask[:, None].float()
        voice = _voice(self.model, drawn)
        with _exportable():
            if self.model.config.use_stochastic_duration_prediction:
                noise = drawn["duration_noise"] * drawn["duration_noise_scale"][:, None, None]
                logs = self._drawn(states.transpose(1, 2), mask, voice, noise)
            else:
                logs = self.predictor(states.transpose(1, 2), mask, voice)
        frames = torch.ceil(torch.exp(logs) * mask * (1 / speaking_rate)[:, None, None])[:, 0].clamp(max=_SLOWEST)
        return frames, frames.sum(dim=1).clamp(min=1).to(torch.int64)

    def _drawn(self, states: Any, mask: Any, voice: Any, latents: Any) -> Any:
        """`VitsStochasticDurationPredictor`, backwards from the noise that it would draw."""
        predictor = self.predictor
        states = predictor.conv_pre(states)
        if voice is not None:
            states = states + predictor.cond(voice)
        states = predictor.conv_proj(predictor.conv_dds(states, mask)) * mask
        first, _, *others = predictor.flows  # it leaves one out, too
        for flow in (*reversed(others), first):
            latents, _ = flow(torch.flip(latents, [1]), mask, global_conditioning=states, reverse=True)
        return latents[:, :1]


class Speech(torch.nn.Module):  # type: ignore[misc]
    """durations, frames, prior_means, prior_log_variances, prior_noise (rows, frames, latent width), noise_scale
    (rows,), where there are speakers speaker -> waveform float32 (rows, samples), samples int64 (rows,), how many are a
    row's own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.samples = math.prod(model.config.upsample_rates)

    def forward(
        self, durations: Any, frames: Any, prior_means: Any, prior_log_variances: Any, prior_noise: Any,
        noise_scale: Any, **chosen: Any,
    ) -> Any:  # fmt: skip
        ends, place = durations.cumsum(dim=1), torch.arange(prior_noise.shape[1])
        token = (ends[:, None] <= place[:, None]).sum(dim=2).clamp(max=durations.shape[1] - 1)[:, :, None]
        spoken = (place < ends[:, -1:])[:, :, None]
        means, logs = (
            each.gather(1, token.expand(-1, -1, each.shape[2])).where(spoken, 0)
            for each in (prior_means, prior_log_variances)
        )
        latents = (means + prior_noise * torch.exp(logs) * noise_scale[:, None, None]).transpose(1, 2)
        mask = (place < frames[:, None])[:, None].float()
        voice = _voice(self.model, chosen)
        with _exportable(), _ending(self.model.decoder, frames):
            latents = self.model.flow(latents, mask, voice, reverse=True) * mask
            waveform = self.model.decoder(latents, voice)
        return waveform[:, 0], frames * self.samples


def _voice(model: Any, chosen: dict[str, Any]) -> Any:
    return model.embed_speaker(chosen["speaker"])[:, :, None] if "speaker" in chosen else None


@contextmanager
def _exportable() -> Iterator[None]:
    """What transformers writes so that shapes or sizes hang on what tensors hold, written otherwise."""
    ours = {"_unconstrained_rational_quadratic_spline": _spline, "fused_add_tanh_sigmoid_multiply": _gate}
    before = {name: getattr(modeling_vits, name) for name in ours}
    for name, function in ours.items():
        setattr(modeling_vits, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(modeling_vits, name, function)


def _gate(a: Any, b: Any, _: Any) -> Any:
    tanh, sigmoid = (a + b).chunk(2, dim=1)
    return torch.tanh(tanh) * torch.sigmoid(sigmoid)


def _spline(inputs: Any, widths: Any, heights: Any, slopes: Any, reverse: bool, tail_bound: float) -> tuple[Any, None]:
    """The inverse of a monotonic rational-quadratic spline in [-bound, bound], and the identity outside.

    inputs (rows, channels, tokens), widths and heights (..., bins), slopes (..., bins - 1) of the inner knots, all
    unnormalised. Source: Durkan et al., Neural spline flows (arXiv 1906.04032), equations 4 and 6 to 8.
    """
    assert reverse
    least, bins = 1e-3, widths.shape[-1]

    def knots(raw: Any) -> Any:
        shares = least + (1 - least * bins) * functional.softmax(raw, dim=-1)
        inner = 2 * tail_bound * torch.cumsum(shares, dim=-1)[..., :-1] - tail_bound
        end = torch.full_like(raw[..., :1], tail_bound)
        return torch.cat([-end, inner, end], dim=-1)

    x, y = knots(widths), knots(heights)
    constant = math.log(math.exp(1 - least) - 1)  # which makes the slope 1 at both ends
    slope = least + functional.softplus(functional.pad(slopes, (1, 1), value=constant))
    inside = inputs.abs() <= tail_bound
    wanted = inputs.where(inside, 0)
    bin_ = (wanted[..., None] >= y[..., :-1]).sum(dim=-1, keepdim=True) - 1

    def at(values: Any) -> Any:
        return values.gather(-1, bin_)[..., 0]

    width, height = at(x[..., 1:] - x[..., :-1]), at(y[..., 1:] - y[..., :-1])
    steepness, left, right = height / width, at(slope[..., :-1]), at(slope[..., 1:])
    above, bend = wanted - at(y[..., :-1]), left + right - 2 * steepness
    a, b, c = height * (steepness - left) + above * bend, height * left - above * bend, -steepness * above
    root = 2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp(min=0)))
    return (root * width + at(x[..., :-1])).where(inside, inputs), None


@contextmanager
def _ending(decoder: Any, frames: Any) -> Iterator[None]:
    """Let every convolution of the vocoder find zeros after a row's own end, as it does where the row is alone."""
    rate, rates = 1, [(decoder.conv_pre, 1)]
    for upsampler, blocks in zip(decoder.upsampler, _groups(decoder), strict=True):
        rates.append((upsampler, rate))
        rate *= upsampler.stride[0]
        rates += [(each, rate) for block in blocks for each in (*block.convs1, *block.convs2)]
    rates.append((decoder.conv_post, rate))

    def ended(rate: int) -> Any:
        def hook(_: Any, arguments: tuple[Any]) -> tuple[Any]:
            (states,) = arguments
            own = torch.arange(states.shape[2]) < rate * frames[:, None]
            return (states * own[:, None].to(states.dtype),)

        return hook

    hooks = [module.register_forward_pre_hook(ended(rate)) for module, rate in rates]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _groups(decoder: Any) -> list[Any]:
    blocks, count = [*decoder.resblocks], decoder.num_kernels
    return [blocks[start : start + count] for start in range(0, len(blocks), count)]


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
