"""Tiny random checkpoints of VITS: as MMS-TTS is, with speakers, and with durations that are not drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LETTERS = "kabcdefghijlmnopqrstuvwxyz '-"  # MMS-TTS: what stands between characters is a letter's id, 0
SYMBOLS = "_;:,.!? ABCabcdefghilmnorstuvæɐɑəɛɪʃʊʌθˈˌː"  # noqa: RUF001 - of phonemes
TINY: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24, "flow_size": 8,
    "spectrogram_bins": 9, "upsample_initial_channel": 16, "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4],
    "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [2]], "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 2, "duration_predictor_num_flows": 2, "duration_predictor_flow_bins": 6,
    "depth_separable_num_layers": 2, "duration_predictor_filter_channels": 12,
    "posterior_encoder_num_wavenet_layers": 1,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # characters, tokenizer, sizes
    "MMS": (LETTERS, {"pad_token": "k", "phonemize": False, "language": "eng"}, {"noise_scale_duration": 0.9}),
    "speakers": (
        SYMBOLS,
        {"pad_token": "_", "phonemize": True, "language": "en-us"},
        {"num_speakers": 3, "speaker_embedding_size": 5, "sampling_rate": 22050, "window_size": 2},
    ),
    "Romanian": (
        " ăâabcdeinorsșţtu",
        {"phonemize": False, "language": "ron", "is_uroman": True, "add_blank": False},
        {"use_stochastic_duration_prediction": False, "speaking_rate": 0.8},
    ),
}


def save_vits(folder: Path, kind: str, **sizes: Any) -> Path:
    """Write the checkpoint; `sizes` go before those of the kind."""
    import torch
    import transformers

    torch.manual_seed(0)
    characters, options, own = KINDS[kind]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({each: place for place, each in enumerate(characters)}))
    tokenizer = transformers.VitsTokenizer(folder / "vocab.json", **options)
    config = transformers.VitsConfig(vocab_size=len(tokenizer), **{**TINY, **own, **sizes})
    model = transformers.VitsModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "conv_proj" in name or "conv_post" in name or ("flows" in name and weight.dim() == 1):
                weight.normal_(0, 0.3)  # or splines and flows are nearly the identity
    for each in (model, tokenizer):
        each.save_pretrained(folder)
    return folder
