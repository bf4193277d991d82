"""Checkpoints to measure with: the emoji example, and SD 1.5's architecture at its real size with random weights."""

from __future__ import annotations

from pathlib import Path

EMOJI = Path(__file__).parent.parent / "examples" / "emoji" / "checkpoint"


def sd15(folder: Path) -> Path:
    """SD 1.5's text encoder (123 M), UNet (860 M) and VAE (84 M) with random weights, in fp16 files.

    The tokenizer is the emoji example's: the ids differ from CLIP's, the work does not.
    """
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMOJI / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    levels = 4
    pipeline = StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text).half(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half(),
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
