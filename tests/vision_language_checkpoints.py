"""Tiny random checkpoints of models that read pictures and texts, or draw pictures, with one stack of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
from corpus import MADE

LIMIT = 300
_CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_TALK = (
    "{% for message in messages %}<|{{ message['role'] | capitalize }}|>: {% for part in message['content'] %}"
    "{{ part['text'] }}{% endfor %}\n\n{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
_WORDS = ["<|im_start|>", *_TILES, "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]


def smolvlm(folder: Path) -> Path:
    """Two heads of queries share one of keys; nine patches become one place; up to 2 x 2 tiles."""
    return _save(
        folder, "SmolVLM", end=3.0, scale=3, patch=8, longest=90, hidden_size=32, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip


def idefics3(folder: Path) -> Path:
    """Pictures are not cut; all heads share the keys, which are wider than the states; llama3's rotary positions; four
    patches a place."""
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    return _save(
        folder, "Idefics3", end=-2.0, scale=2, patch=12, longest=90, cut=False, hidden_size=24, num_attention_heads=3,
        num_key_value_heads=1, head_dim=12, rope_parameters=rope,
    )  # fmt: skip


def _save(
    folder: Path, kind: str, scale: int, patch: int, end: float, longest: int, cut: bool = True, **text: Any
) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    last, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = getattr(transformers, f"{kind}Config")(
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "intermediate_size": 48, "num_hidden_layers": 2,
            "max_position_embeddings": LIMIT, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": last,
            "pad_token_id": pad, "tie_word_embeddings": False, **text,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 48, "patch_size": patch, "initializer_range": 0.3,
        },
        scale_factor=scale,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    model.generation_config = transformers.GenerationConfig(eos_token_id=last, pad_token_id=pad, bos_token_id=0)
    with torch.no_grad():
        model.lm_head.weight[last] *= end
    processor = _processor(kind, longest, cut)
    for each in (model, processor, tokenizer):
        each.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    tokenizer = MADE["GPT-2"](folder.parent / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": _WORDS})
    tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template = _WORDS[0], _WORDS[-1], _CHAT
    tokenizer.padding_side, tokenizer.model_max_length = "left", LIMIT
    return tokenizer


def _processor(kind: str, longest: int, cut: bool) -> Any:
    import importlib

    module = importlib.import_module(f"transformers.models.{kind.lower()}.image_processing_pil_{kind.lower()}")
    return getattr(module, f"{kind}ImageProcessorPil")(
        do_image_splitting=cut, size={"longest_edge": longest}, max_image_size={"longest_edge": 48}
    )


def janus(
    folder: Path,
    text: Mapping[str, Any] = MappingProxyType({}),
    vision: Mapping[str, Any] = MappingProxyType({}),
    codes: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Draws pictures of 16 pixels in 8 x 8 codes, or as changed; reads none here, though it could."""
    import torch
    import transformers
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    torch.manual_seed(0)
    backend = MADE["BART"](folder.parent / "tokenizer").backend_tokenizer
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<begin_of_image>", "<image_placeholder>"]})
    tokenizer.chat_template, tokenizer.padding_side = _TALK, "left"
    config = transformers.JanusConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
            "max_position_embeddings": LIMIT, **text,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 4,
            "num_image_tokens": 64, "projection_dim": 32, "mlp_ratio": 1.0, **vision,
        },
        vq_config={
            "embed_dim": 8, "num_embeddings": 96, "latent_channels": 16, "base_channels": 32, "num_res_blocks": 1,
            "channel_multiplier": [1, 2], "projection_dim": 32, "image_token_embed_dim": 32, "initializer_range": 0.3,
            **codes,
        },
    )  # fmt: skip
    model = transformers.JanusForConditionalGeneration(config)
    begin = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=0, pad_token_id=1, eos_token_id=2, guidance_scale=3.0, generation_kwargs={"boi_token_id": begin}
    )
    for each in (model, JanusImageProcessorPil(size={"height": 32, "width": 32}), tokenizer):
        each.save_pretrained(folder)
    return folder


def smolvlm_wide(folder: Path) -> Path:
    """One layer, each head with keys of its own, another activation; wide and high pictures have 2 tiles."""
    return _save(
        folder, "SmolVLM", end=3.0, scale=2, patch=8, longest=50, hidden_size=40, num_attention_heads=5,
        num_key_value_heads=5, num_hidden_layers=1, hidden_act="gelu", rms_norm_eps=1e-3,
    )  # fmt: skip


def idefics3_cut(folder: Path) -> Path:
    """Up to 4 x 4 tiles of one place each; one layer."""
    return _save(
        folder, "Idefics3", end=3.0, scale=6, patch=8, longest=180, hidden_size=24, num_attention_heads=2,
        num_key_value_heads=2, num_hidden_layers=1,
    )  # fmt: skip


CHECKPOINTS = {
    "SmolVLM": smolvlm, "Idefics3": idefics3, "SmolVLM, wide": smolvlm_wide, "Idefics3, cut": idefics3_cut,
}  # fmt: skip
JANUS: dict[str, Callable[[Path], Path]] = {
    "Janus": janus,
    "Janus, 32 pixels": partial(
        janus,
        text={"num_hidden_layers": 1, "num_key_value_heads": 4, "hidden_act": "gelu"},
        codes={"channel_multiplier": [1, 1, 2], "num_embeddings": 200, "embed_dim": 4},
    ),
    "Janus, 4 x 4 codes": partial(
        janus,
        text={"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "num_hidden_layers": 3},
        vision={"patch_size": 8, "num_image_tokens": 16, "projection_dim": 40},
        codes={"num_res_blocks": 2, "projection_dim": 40, "image_token_embed_dim": 40},
    ),
}
