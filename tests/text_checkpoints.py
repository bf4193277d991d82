"""Tiny random checkpoints of the architectures that write texts: layer counts, heads and widths differ among them.

Their weights are large enough that texts vary, and the token that ends a text weighs more, so that it does come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from corpus import MADE

POSITIONS = 128


def _save(model: Any, folder: Path, *processors: Any, end: float, layers: float = 1.0) -> Path:
    """Write all. `end` is how many times as large the end's output weights become, `layers` those within layers.

    Where the output's weights are also the embeddings, a token is likely to come again, the less so the more layers do.
    """
    import torch

    output = model.get_output_embeddings() or model.decoder.get_output_embeddings()
    with torch.no_grad():
        output.weight[model.generation_config.eos_token_id] *= end
        for name, weight in model.named_parameters():
            if ".layer" in name and weight.dim() == 2:
                weight *= layers
    for each in (model, *processors):
        each.save_pretrained(folder)
    return folder


def _tokenizer(kind: str, folder: Path, length: int = POSITIONS) -> Any:
    made = MADE[kind](folder.parent / "tokenizer")
    made.model_max_length = length
    return made


def t5(folder: Path, end: float = 4.0, layers: float = 3.0, **changes: Any) -> Path:
    """relu, and embeddings that are also the output's."""
    import transformers

    tokenizer = _tokenizer("T5", folder, 512)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4} | changes
    config = transformers.T5Config(
        vocab_size=len(tokenizer), initializer_factor=2.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        **sizes,
    )  # fmt: skip
    return _save(transformers.T5ForConditionalGeneration(config), folder, tokenizer, end=end, layers=layers)


def mt5(folder: Path) -> Path:
    """As FLAN-T5: gated gelu, its own output weights; heads wider than the states.

    transformers' own `generate` fails where the decoder has more layers than the encoder.
    """
    import transformers

    tokenizer = _tokenizer("T5", folder, 512)
    config = transformers.MT5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=10, d_ff=40, num_layers=2, num_decoder_layers=1, num_heads=3,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, initializer_factor=2.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return _save(transformers.MT5ForConditionalGeneration(config), folder, tokenizer, end=2.6)


_BART = {"width": 32, "encoder": (1, 2, 40), "decoder": (2, 4, 64)}
_MBART = {"width": 24, "encoder": (2, 4, 32), "decoder": (1, 2, 32)}
_MARIAN = {"width": 16, "encoder": (2, 2, 32), "decoder": (2, 2, 32)}


def bart(folder: Path, sizes: Mapping[str, Any] = _BART, end: float = 3.0, layers: float = 2.0, **changes: Any) -> Path:
    """The first token is forced, and so is the last."""
    import transformers

    tokenizer = _tokenizer("BART", folder)
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    forced = {"forced_bos_token_id": 0, "forced_eos_token_id": 2}
    config = transformers.BartConfig(**{**_sizes(len(tokenizer), **sizes), **tokens, **forced, **changes})
    return _save(transformers.BartForConditionalGeneration(config), folder, tokenizer, end=end, layers=layers)


def mbart(folder: Path, sizes: Mapping[str, Any] = _MBART, end: float = 2.6, **changes: Any) -> Path:
    """English to Romanian: texts begin with the token of the target's language."""
    import transformers

    tokenizer = _tokenizer("mBART", folder)
    config = transformers.MBartConfig(
        **_sizes(len(tokenizer), **sizes),
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=tokenizer.lang_code_to_id["ro_RO"],
        **{"scale_embedding": True, "tie_word_embeddings": False, "forced_eos_token_id": 2, **changes},
    )  # fmt: skip
    return _save(transformers.MBartForConditionalGeneration(config), folder, tokenizer, end=end)


def marian(
    folder: Path,
    sizes: Mapping[str, Any] = _MARIAN,
    end: float = 2.6,
    layers: float = 1.0,
    beams: int = 6,
    **changes: Any,
) -> Path:
    """Two target languages, said before the text; the padding starts texts, and never comes in them."""
    import transformers

    tokenizer = _tokenizer("Marian", folder)
    pad = tokenizer.pad_token_id
    usual: dict[str, Any] = {"activation_function": "swish", "static_position_embeddings": True}
    usual |= {"scale_embedding": True, "tie_word_embeddings": False}
    config = transformers.MarianConfig(
        **_sizes(len(tokenizer), **sizes),
        pad_token_id=pad, bos_token_id=0, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=0,
        **{**usual, **changes},
    )  # fmt: skip
    model = transformers.MarianMTModel(config)
    model.generation_config.bad_words_ids = [[pad]]
    model.generation_config.num_beams = beams
    return _save(model, folder, tokenizer, end=end, layers=layers)


def m2m100(folder: Path) -> Path:
    """The token of the target's language is forced as the first."""
    import transformers

    return _m2m100(folder, _tokenizer("M2M100", folder), transformers, width=20, encoder=(1, 2, 24), decoder=(2, 5, 24))


def nllb(folder: Path) -> Path:
    """M2M100 with NLLB's languages."""
    import transformers

    return _m2m100(folder, _tokenizer("NLLB", folder), transformers, width=32, encoder=(2, 4, 24), decoder=(1, 4, 40))


def nllb_relu(folder: Path) -> Path:
    """Embeddings as they are, and another activation."""
    import transformers

    return _m2m100(
        folder, _tokenizer("NLLB", folder), transformers, {"scale_embedding": False, "activation_function": "gelu"},
        end=4.0, width=24, encoder=(1, 3, 32), decoder=(1, 2, 24),
    )  # fmt: skip


def _m2m100(
    folder: Path,
    tokenizer: Any,
    transformers: Any,
    changes: Mapping[str, Any] = MappingProxyType({}),
    end: float = 2.6,
    **sizes: Any,
) -> Path:
    config = transformers.M2M100Config(
        **_sizes(len(tokenizer), **sizes), **{"scale_embedding": True, "tie_word_embeddings": False, **changes},
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    return _save(transformers.M2M100ForConditionalGeneration(config), folder, tokenizer, end=end)


def _sizes(vocabulary: int, width: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int]) -> dict[str, Any]:
    """BART's names; of the encoder and the decoder the layers, heads and inner width."""
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "encoder_layers": encoder[0],
        "encoder_attention_heads": encoder[1],
        "encoder_ffn_dim": encoder[2],
        "decoder_layers": decoder[0],
        "decoder_attention_heads": decoder[1],
        "decoder_ffn_dim": decoder[2],
        "max_position_embeddings": POSITIONS,
        "init_std": 0.3,
    }


def vit_gpt2(folder: Path) -> Path:
    """Another width in the decoder than in the encoder; GPT-2 has no padding token, and one token starts and ends."""
    import transformers

    tokenizer = _tokenizer("GPT-2", folder)
    decoder = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=40, n_layer=2, n_head=4, n_positions=POSITIONS, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _captioner(
        folder, tokenizer, _vit(32), decoder, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}, -2.2
    )


def vit_bert(folder: Path) -> Path:
    import transformers

    tokenizer = _tokenizer("BERT", folder)
    decoder = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=POSITIONS, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    start, end = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    return _captioner(
        folder,
        tokenizer,
        _vit(24),
        decoder,
        {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": 0},
        -2.2,
    )


def trocr(folder: Path) -> Path:
    """DeiT, at whose width TrOCR's decoder looks without a projection between."""
    import transformers

    tokenizer = _tokenizer("RoBERTa", folder)
    decoder = transformers.TrOCRConfig(
        vocab_size=len(tokenizer), d_model=40, decoder_layers=2, decoder_attention_heads=5, decoder_ffn_dim=48,
        max_position_embeddings=POSITIONS, init_std=0.3, cross_attention_hidden_size=32,
        tie_word_embeddings=False,
    )  # fmt: skip
    encoder = transformers.DeiTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=48, patch_size=16,
        initializer_range=0.3,
    )  # fmt: skip
    return _captioner(
        folder, tokenizer, encoder, decoder, {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}, 3.0
    )


def swin_bart(folder: Path) -> Path:
    """An encoder that halves the picture and doubles the width on its way."""
    import transformers

    tokenizer = _tokenizer("BART", folder)
    decoder = transformers.MBartConfig(
        **_sizes(len(tokenizer), width=24, encoder=(1, 2, 24), decoder=(1, 3, 24)),
        is_decoder=True,
        tie_word_embeddings=False,
    )
    encoder = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4, initializer_range=0.3
    )
    return _captioner(
        folder, tokenizer, encoder, decoder, {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}, 2.0
    )


def _vit(width: int) -> Any:
    import transformers

    return transformers.ViTConfig(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=48,
        patch_size=16, initializer_range=0.3,
    )  # fmt: skip


def _captioner(folder: Path, tokenizer: Any, encoder: Any, decoder: Any, tokens: dict[str, int], end: float) -> Path:
    import transformers

    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config = transformers.GenerationConfig(**tokens)
    size = encoder.image_size
    processor = transformers.ViTImageProcessor(size={"height": size, "width": size})
    return _save(model, folder, tokenizer, processor, end=end)


TRANSLATORS: dict[str, Callable[[Path], Path]] = {
    "T5": t5,
    "T5, untied": partial(
        t5, end=2.6, layers=1.0, d_model=40, num_heads=5, num_layers=1, feed_forward_proj="gated-silu",
        relative_attention_num_buckets=8, relative_attention_max_distance=20, tie_word_embeddings=False,
    ),
    "mT5": mt5,
    "BART": bart,
    "BART, scaled": partial(
        bart, sizes={"width": 24, "encoder": (2, 4, 32), "decoder": (1, 3, 32)}, end=6.0, scale_embedding=True,
        activation_function="relu", tie_word_embeddings=False, forced_bos_token_id=None, decoder_start_token_id=0,
    ),
    "BART, nothing forced": partial(
        bart, sizes={"width": 40, "encoder": (1, 5, 24), "decoder": (1, 2, 24)}, end=2.6, layers=1.0,
        tie_word_embeddings=False, forced_bos_token_id=None, forced_eos_token_id=None,
    ),
    "mBART": mbart,
    "mBART, not scaled": partial(
        mbart, sizes={"width": 32, "encoder": (1, 4, 40), "decoder": (2, 2, 24)}, scale_embedding=False,
        activation_function="relu",
    ),
    "mBART, deep": partial(
        mbart, sizes={"width": 24, "encoder": (1, 3, 24), "decoder": (3, 4, 32)}, forced_eos_token_id=None
    ),
    "Marian": marian,
    "Marian, one beam": partial(
        marian, sizes={"width": 24, "encoder": (2, 4, 24), "decoder": (1, 2, 24)}, end=6.0, beams=1,
        activation_function="gelu",
    ),
    "Marian, tied": partial(
        marian, sizes={"width": 32, "encoder": (1, 4, 48), "decoder": (2, 4, 48)}, end=6.0, layers=2.0,
        scale_embedding=False, activation_function="relu", tie_word_embeddings=True,
    ),
    "M2M100": m2m100,
    "NLLB": nllb,
    "NLLB, not scaled": nllb_relu,
}  # fmt: skip
CAPTIONERS: dict[str, Callable[[Path], Path]] = {
    "ViT, GPT-2": vit_gpt2,
    "ViT, BERT": vit_bert,
    "DeiT, TrOCR": trocr,
    "Swin, BART": swin_bart,
}


def save_text_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint of that name to `folder`."""
    import torch

    torch.manual_seed(seed)
    return {**TRANSLATORS, **CAPTIONERS}[name](folder)
