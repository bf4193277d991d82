"""Tiny random Whisper checkpoints that hear two seconds: of four languages, of English alone, and as large-v3 is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from corpus import reload, train_lines

SECONDS, RATE, POSITIONS = 2, 16000, 128
END = 0.6  # how large the output's weights are for the token that ends a text
LANGUAGES = ["en", "de", "fr", "zh"]


KINDS: dict[str, dict[str, Any]] = {  # what the model's config says besides
    "several languages": {},
    "English": {},
    "large": {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "decoder_layers": 1,
        "decoder_attention_heads": 4, "num_mel_bins": 24, "activation_function": "relu", "scale_embedding": True,
    },
}  # fmt: skip


def save_whisper(folder: Path, kind: str, seed: int = 1) -> Path:
    """Write the checkpoint. Its encoder has another number of layers than its decoder."""
    import torch
    import transformers

    torch.manual_seed(seed)
    english = kind == "English"
    tokenizer = _tokenizer(folder.parent / "tokenizer", english)
    ids = tokenizer.convert_tokens_to_ids
    special = {
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        "decoder_start_token_id": ids("<|startoftranscript|>"),
    }  # fmt: skip
    sizes: dict[str, Any] = {
        "d_model": 24, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_layers": 2,
        "decoder_attention_heads": 3, "decoder_ffn_dim": 40, "num_mel_bins": 16, **KINDS[kind],
    }  # fmt: skip
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), init_std=0.3, max_source_positions=50 * SECONDS, max_target_positions=POSITIONS,
        begin_suppress_tokens=None, suppress_tokens=None, **special, **sizes,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    languages = {f"<|{code}|>": ids(f"<|{code}|>") for code in LANGUAGES}
    tasks = {task: ids(f"<|{task}|>") for task in ("transcribe", "translate")}
    model.generation_config = transformers.GenerationConfig(
        **special,
        **({} if english else {"lang_to_id": languages, "task_to_id": tasks}),
        is_multilingual=not english,
        no_timestamps_token_id=ids("<|notimestamps|>"),
        max_initial_timestamp_index=50,
        return_timestamps=False,
        max_length=POSITIONS,
        begin_suppress_tokens=[65, 0] if kind != "large" else [0],
        suppress_tokens=[5, 6, 7, ids("<|startoftranscript|>")] if kind != "large" else None,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layers" in name and weight.dim() == 2:
                weight *= 3.0  # or a token comes again and again, whose embedding is also the output's
        model.proj_out.weight[0] = END * torch.randn(
            config.d_model
        )  # some texts end; it is the padding too, and so was zeros
    extractor = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=SECONDS)
    for each in (model, tokenizer, extractor):
        each.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, english: bool) -> Any:
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(train_lines(), vocab_size=700, special_tokens=["<|endoftext|>"], show_progress=False)
    content = json.loads(trained.to_str())["model"]
    made = transformers.WhisperTokenizer(vocab=content["vocab"], merges=[tuple(each) for each in content["merges"]])
    several = [] if english else [f"<|{word}|>" for word in (*LANGUAGES, "translate", "transcribe")]
    made.add_special_tokens({"additional_special_tokens": ["<|startoftranscript|>", *several, "<|notimestamps|>"]})
    made.add_tokens([f"<|{step / 50:.2f}|>" for step in range(50 * SECONDS + 1)])
    return reload(made, folder)
