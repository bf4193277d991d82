"""The five parts of the pipeline, untrained: autoencoder, tokenizer, text encoder, denoiser, sampler."""

from __future__ import annotations

import json
from pathlib import Path

import data
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT = 8  # height, width and channels of the latents
WIDTH = 192  # of the text encoder
LENGTH = 32  # tokens of a prompt; the names take 11 at most
PATCHES = 16  # the last tokens of a prompt, padding after any name, each of which tells of one 2 x 2 patch of latents


def new_autoencoder() -> AutoencoderKL:
    """64 px pictures <-> 8 x 8 x 8 latents; the full resolution is narrow because it costs the most time."""
    levels = 4
    model = AutoencoderKL(
        block_out_channels=(12, 24, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=LATENT,
        sample_size=data.SIZE,
    )
    assert model.quant_conv is not None
    assert model.quant_conv.bias is not None
    with torch.no_grad():
        model.quant_conv.bias[LATENT:] = -6.0  # log variance: a narrow posterior from the start
    return model


def new_tokenizer(emoji: list[data.Emoji]) -> CLIPTokenizer:
    """CLIP's byte-level BPE, with merges learnt from the names: most words, Chinese ones too, are one or two tokens."""
    corpus = [spelling for row in emoji for name in row[1:] for spelling in data.spellings(name)]
    trainer = BpeTrainer(
        vocab_size=6000,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner = CLIPTokenizer().backend_tokenizer
    learner.train_from_iterator(corpus, trainer)
    bpe = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in bpe["merges"]]
    return CLIPTokenizer(vocab=bpe["vocab"], merges=merges, model_max_length=LENGTH)


def kept_tokenizer(folder: Path, emoji: list[data.Emoji]) -> CLIPTokenizer:
    """The tokenizer in `folder`, made once: learning breaks ties differently each time, and the ids must stay."""
    if not folder.exists():
        new_tokenizer(emoji).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Prompt ids (batch, 32) -> tokens (batch, 32, 192)."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=WIDTH,
    )
    return CLIPTextModel(config)


def new_denoiser() -> UNet2DConditionModel:
    """Latents (batch, 8, 8, 8), timestep, tokens (batch, 32, 192) -> velocity.

    The text is read at 4 x 4, where one of its patches is one point.
    """
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=LATENT,
        out_channels=LATENT,
        block_out_channels=(96, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # heads of a layer, as diffusers reads it
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )


def new_sampler() -> DDIMScheduler:
    """DDIM over velocities; the noisiest step has no signal left, so that sampling starts where training did."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # not used by trailing; the pipeline wants it
        rescale_betas_zero_snr=True,
    )
