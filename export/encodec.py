"""EnCodec's decoder (arXiv 2210.13438), as transformers has it, in what torch can export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


class Codec(torch.nn.Module):  # type: ignore[misc]
    """sequences int64 (batch, frames, codebooks) -> waveform float32 (batch, samples), or (batch, 2, samples) of
    codebooks for the left and the right in turn."""

    def __init__(self, codec: Any, channels: int) -> None:
        super().__init__()
        self.codec, self.channels = codec, channels

    def forward(self, sequences: Any) -> Any:
        sides = [sequences[:, :, side :: self.channels] for side in range(self.channels)]
        codes = torch.cat(sides).permute(2, 0, 1)
        with _exportable(self.codec.decoder):
            sound = self.codec.decoder(self.codec.quantizer.decode(codes))
        if self.channels == 1:
            return sound[:, 0]
        return sound.reshape(self.channels, sequences.shape[0], -1).transpose(0, 1)


@contextmanager
def _exportable(decoder: Any) -> Iterator[None]:
    """EnCodec's convolutions, whose padding is tensors, and its LSTM, written otherwise."""
    ours = {"EncodecConv1d": _convolve, "EncodecLSTM": _remember}
    replaced = [each for each in decoder.modules() if type(each).__name__ in ours]
    for module in replaced:
        module.forward = partial(ours[type(module).__name__], module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def padding(convolution: Any) -> tuple[int, int]:
    """What `EncodecConv1d` of stride 1 pads at the left and the right."""
    inner = convolution.conv
    total = (inner.kernel_size[0] - 1) * inner.dilation[0]
    return (total, 0) if convolution.causal else (total - total // 2, total // 2)


def _convolve(module: Any, states: Any) -> Any:
    states = module.conv(module._pad1d(states, padding(module), mode=module.pad_mode))
    return module.norm(states) if module.norm_type == "time_group_norm" else states


def _remember(module: Any, states: Any) -> Any:
    """(batch, width, frames) through layers of ONNX's LSTM, whose gates are input, output, forget and cell."""
    lstm, states = module.lstm, states.permute(2, 0, 1)
    found, size = states, lstm.hidden_size
    for layer in range(lstm.num_layers):
        weights = [getattr(lstm, f"{kind}_l{layer}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        taken, kept, *biases = (
            torch.cat([each[size * gate : size * (gate + 1)] for gate in (0, 3, 1, 2)])[None] for each in weights
        )
        frames, batch, width = found.shape
        found = torch.onnx.ops.symbolic(
            "LSTM",
            (found, taken, kept, torch.cat(biases, dim=1)),
            {"hidden_size": size},
            dtype=found.dtype,
            shape=(frames, 1, batch, width),
            version=22,
        )[:, 0]
    return (found + states).permute(1, 2, 0)
