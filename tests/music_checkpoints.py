"""Tiny random checkpoints of MusicGen: mono, with a text encoder of another width, and stereo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corpus import MADE

CODES = 64
KINDS: dict[str, dict[str, Any]] = {
    "mono": {"num_codebooks": 4, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2},
    "stereo": {"num_codebooks": 4, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    | {"audio_channels": 2, "activation_function": "relu", "scale_embedding": True},
}


def save_musicgen(folder: Path, kind: str) -> Path:
    """Write the checkpoint; that of stereo has a text encoder as wide as its decoder."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = MADE["T5"](folder.parent / "tokenizer")
    sizes = KINDS[kind]
    text = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, initializer_factor=3.0
    )
    codec = transformers.EncodecConfig(
        sampling_rate=8000, hidden_size=12, num_filters=2, upsampling_ratios=[2, 4], codebook_size=CODES,
        codebook_dim=12, num_lstm_layers=2 if kind == "mono" else 1, use_causal_conv=kind == "stereo",
        num_residual_layers=1, target_bandwidths=[40.0], trim_right_ratio=1.0,
    )  # fmt: skip
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=CODES, max_position_embeddings=128, ffn_dim=32, initializer_factor=0.3, pad_token_id=CODES,
        bos_token_id=CODES, **sizes,
    )  # fmt: skip
    config = transformers.MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    model = transformers.MusicgenForConditionalGeneration(config)
    special = {"decoder_start_token_id": CODES, "pad_token_id": CODES, "bos_token_id": CODES}
    model.generation_config = transformers.GenerationConfig(
        **special, do_sample=True, guidance_scale=3.0, max_length=60
    )
    with torch.no_grad():
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
        for name, weight in model.decoder.named_parameters():
            if weight.dim() == 2:
                weight *= 3.0 if "lm_heads" in name else 2.0  # or the same code comes again and again
    for each in (model, tokenizer):
        each.save_pretrained(folder)
    return folder
