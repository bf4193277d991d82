"""Checkpoints to measure with: the examples, and real architectures at their real sizes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent / "examples"
EMOJI, TRANSLATOR = EXAMPLES / "emoji" / "checkpoint", EXAMPLES / "translator" / "checkpoint"
SIZES_OF_MARIAN = {"attention_heads": 8, "ffn_dim": 2048}


def sd15(folder: Path) -> Path:
    """SD 1.5's text encoder (123 M), UNet (860 M) and VAE (84 M) with random weights, in fp16 files."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return _stable_diffusion(folder, text, {"cross_attention_dim": 768, "attention_head_dim": 8})


def sd_turbo(folder: Path) -> Path:
    """SD-Turbo's, which are SD 2.1's: text encoder (340 M), UNet (866 M) and VAE, the same way."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    unet = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
    return _stable_diffusion(folder, text | {"hidden_act": "gelu"}, unet)


def _stable_diffusion(folder: Path, text: dict[str, Any], unet: dict[str, Any]) -> Path:
    """The tokenizer is the emoji example's: the ids differ from CLIP's, the work does not."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMOJI / "tokenizer", model_max_length=77)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    levels = 4
    pipeline = StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text, **ids)).half(),
        unet=UNet2DConditionModel(sample_size=64, **unet).half(),
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            sample_size=512,
        ).half(),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def whisper(name: str, folder: Path) -> Path:
    """Whisper tiny or base at their real sizes with random weights, and a tokenizer of bytes alone."""
    import torch
    import transformers as t
    from tokenizers.pre_tokenizers import ByteLevel

    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    width, layers = {"whisper-tiny": (384, 4), "whisper-base": (512, 6)}[name]
    sizes = {"encoder_layers": layers, "decoder_layers": layers}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_attention_heads": width // 64, f"{side}_ffn_dim": 4 * width}
    model = t.WhisperForConditionalGeneration(t.WhisperConfig(d_model=width, **sizes))
    ids = {"bos_token_id": 50257, "pad_token_id": 50257, "eos_token_id": 50257, "decoder_start_token_id": 50258}
    model.generation_config = t.GenerationConfig(
        **ids, is_multilingual=False, no_timestamps_token_id=50363, return_timestamps=False
    )
    signs = {sign: place for place, sign in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = t.WhisperTokenizer(vocab=signs | {"<|endoftext|>": len(signs)}, merges=[])
    for each in (model, tokenizer, t.WhisperFeatureExtractor()):
        each.save_pretrained(folder)
    return folder


def text_model(name: str, folder: Path) -> Path:
    """T5-small, opus-mt's Marian or ViT-GPT2 at their real sizes with random weights.

    The tokenizer is the translator example's: the ids differ from the models' own, the work does not.
    """
    import torch
    import transformers as t

    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    if name == "t5-small":
        model = t.T5ForConditionalGeneration(t.T5Config(**ids))
    elif name == "marian":
        sizes = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 58101}
        sizes |= {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIZES_OF_MARIAN.items()}
        model = t.MarianMTModel(
            t.MarianConfig(**sizes, max_position_embeddings=512, activation_function="swish", **ids)
        )
    else:
        decoder = t.GPT2LMHeadModel(t.GPT2Config(add_cross_attention=True, is_decoder=True))
        model = t.VisionEncoderDecoderModel(encoder=t.ViTModel(t.ViTConfig()), decoder=decoder)
        model.generation_config = t.GenerationConfig(**ids)
        t.ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    model.generation_config.update(**ids, max_length=None)
    model.save_pretrained(folder)
    t.AutoTokenizer.from_pretrained(TRANSLATOR).save_pretrained(folder)
    return folder


def embedder(name: str, folder: Path) -> Path:
    """MiniLM (6 layers of width 384), and CLIP ViT-B/32 for transformers or for open_clip, with random weights.

    The tokenizers are the examples', but open_clip's, which is its own.
    """
    import json

    import torch
    import transformers as t

    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if name == "minilm":
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        t.BertModel(t.BertConfig(**sizes)).save_pretrained(folder)
        t.AutoTokenizer.from_pretrained(TRANSLATOR, model_max_length=512).save_pretrained(folder)
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        pooling = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    elif name == "clip":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        tokenizer = t.CLIPTokenizer.from_pretrained(EMOJI / "tokenizer", model_max_length=77)
        ids = {each: getattr(tokenizer, each) for each in ("bos_token_id", "eos_token_id", "pad_token_id")}
        t.CLIPModel(t.CLIPConfig(text_config=ids)).save_pretrained(folder)
        for each in (tokenizer, CLIPImageProcessorPil()):
            each.save_pretrained(folder)
    else:
        from safetensors.torch import save_file

        from mmrt.export.open_clip_library import open_clip

        vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
        text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
        config = {"model_cfg": {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        model = open_clip().create_model(f"local-dir:{folder}")
        save_file(dict(model.state_dict()), folder / "open_clip_model.safetensors")
    (folder / "done").touch()
    return folder
