"""The three parts of transformers' `VitsModel` as graphs: what is drawn comes in, and no size hangs on numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers.models.vits import modeling_vits

from mmrt.export.decoder import mask_for, spread

_MOST_FRAMES = 2.0**20  # of a token


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
        frames = torch.ceil(torch.exp(logs) * mask * (1 / speaking_rate)[:, None, None])[:, 0].clamp(max=_MOST_FRAMES)
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
