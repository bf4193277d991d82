"""EnCodec's decoder (arXiv 2210.13438), as transformers has it, in what torch can export."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.encodec.modeling_encodec import EncodecConv1d

from mmrt.export.forwards import forwards


class Codec(torch.nn.Module):  # type: ignore[misc]
    """sequences int64 (batch, frames, codebooks) -> waveform float32 (batch, samples), or (batch, 2, samples) of
    codebooks for the left and the right in turn."""

    def __init__(self, codec: Any, channels: int) -> None:
        super().__init__()
        self.codec, self.channels = codec, channels

    def forward(self, sequences: Any) -> Any:
        sides = [sequences[:, :, side :: self.channels] for side in range(self.channels)]
        codes = torch.cat(sides).permute(2, 0, 1)
        with forwards(self.codec.decoder, {EncodecConv1d: _convolve}):  # whose padding is tensors
            sound = self.codec.decoder(self.codec.quantizer.decode(codes))
        if self.channels == 1:
            return sound[:, 0]
        return sound.reshape(self.channels, sequences.shape[0], -1).transpose(0, 1)


def padding(convolution: Any) -> tuple[int, int]:
    """What `EncodecConv1d` of stride 1 pads at the left and the right."""
    inner = convolution.conv
    total = (inner.kernel_size[0] - 1) * inner.dilation[0]
    return (total, 0) if convolution.causal else (total - total // 2, total // 2)


def _convolve(module: Any, states: Any) -> Any:
    states = module.conv(module._pad1d(states, padding(module), mode=module.pad_mode))
    return module.norm(states) if module.norm_type == "time_group_norm" else states
