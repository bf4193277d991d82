"""Stable Diffusion 1.x and 2.x, and latent consistency models distilled from them, in diffusers' layout.

arXiv 2112.10752; v-prediction arXiv 2202.00512; embedded guidance arXiv 2310.04378, section 4.3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import torch.nn.functional as F

from mmrt.export import schedules
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.components import load_model, load_pipeline
from mmrt.export.diffusers_reference import Reference
from mmrt.export.preview import fit_preview
from mmrt.export.recipe import Graph, Recipe
from mmrt.export.tokenizer import tokenizer_file
from mmrt.runtime import manifest as m
from mmrt.runtime.errors import ExportError

CLASSES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
TASK = "text-to-image"
_TOKENIZER = "tokenizers/prompt.json"
_MODELS = {
    "text_encoder": "transformers.CLIPTextModel",
    "unet": "diffusers.UNet2DConditionModel",
    "vae": "diffusers.AutoencoderKL",
}
_TOKENIZERS = ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast")
_LARGEST = 4096  # pixels a side
_REFERENCE_SIDE = 192  # golden pictures are no wider
_UNSUPPORTED = {  # fields of the UNet that other pipelines feed, and the value that means "no"
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_type": "default",
}


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    for component, class_name in _MODELS.items():
        checkpoint.need_class(component, class_name)
    checkpoint.need_class("tokenizer", *_TOKENIZERS)
    _need_known_scheduler(checkpoint)
    configs = {component: checkpoint.json(f"{component}/config.json") for component in _MODELS}
    _check_configs(checkpoint, configs)
    models = {component: load_model(checkpoint, component, class_name) for component, class_name in _MODELS.items()}
    pipeline = load_pipeline(checkpoint, "StableDiffusionPipeline", models)
    _check_fit(checkpoint, pipeline)
    return _Model(pipeline).recipe(checkpoint.name)


def _need_known_scheduler(checkpoint: Checkpoint) -> None:
    name = f"{checkpoint.path / 'model_index.json'}: scheduler"
    entry = checkpoint.index.get("scheduler")
    if not (isinstance(entry, list) and len(entry) == 2 and entry[0] == "diffusers"):
        raise ExportError(f"{name} is {entry!r}, wanted a scheduler of diffusers")
    cls = getattr(diffusers, str(entry[1]), None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise ExportError(f"{name} is {entry[1]!r}, which diffusers {diffusers.__version__} does not have")
    checkpoint.json("scheduler/scheduler_config.json")


def _check_configs(checkpoint: Checkpoint, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse, before weights are read, what this family's graphs would not compute."""
    unet, text = configs["unet"], configs["text_encoder"]
    where = checkpoint.path / "unet" / "config.json"
    latent = configs["vae"].get("latent_channels", 4)
    for field in ("in_channels", "out_channels"):
        found = unet.get(field, 4)
        if found != latent:
            hint = "; 9 is an inpainting model" if found == 9 else ""
            raise ExportError(f"{where}: {field} is {found}, supported is {latent}, the VAE's latent_channels{hint}")
    for field, wanted in _UNSUPPORTED.items():
        if unet.get(field, wanted) != wanted:
            raise ExportError(
                f"{where}: {field} is {unet[field]!r}, supported is {wanted!r}: no Stable Diffusion 1 or 2"
            )
    width = text.get("hidden_size", 512)
    given = unet.get("cross_attention_dim", 1280)
    if any(each != width for each in (given if isinstance(given, list) else [given])):
        raise ExportError(f"{where}: cross_attention_dim is {given}, wanted {width}, the text encoder's hidden_size")
    if text.get("use_attention_mask"):
        where = checkpoint.path / "text_encoder" / "config.json"
        raise ExportError(f"{where}: use_attention_mask is {text['use_attention_mask']}, supported is false")


def _check_fit(checkpoint: Checkpoint, pipeline: Any) -> None:
    """Refuse a tokenizer that the text encoder cannot follow, and a VAE that is not of RGB pictures."""
    text, tokenizer = pipeline.text_encoder.config, pipeline.tokenizer
    where = checkpoint.path / "tokenizer"
    if len(tokenizer) > text.vocab_size:
        raise ExportError(f"{where}: has {len(tokenizer)} tokens, the text encoder's vocab_size is {text.vocab_size}")
    if tokenizer.model_max_length > text.max_position_embeddings:
        raise ExportError(
            f"{where}: model_max_length is {tokenizer.model_max_length}, "
            f"wanted at most {text.max_position_embeddings}, the text encoder's max_position_embeddings"
        )
    for field in ("in_channels", "out_channels"):
        if pipeline.vae.config[field] != 3:
            raise ExportError(
                f"{checkpoint.path / 'vae/config.json'}: {field} is {pipeline.vae.config[field]}, wanted 3"
            )


# ---------------------------------------------------------------- the graphs


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """prompt_ids int64 (texts, length) -> context float32 (texts, length, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, prompt_ids: Any) -> Any:
        return self.model(prompt_ids)[0]


def _for_any_size(unet: Any) -> Any:
    """The same UNet, but upsampling always takes the size that is wanted: no side is a multiple of 2^31."""
    twin = copy.copy(unet)  # shares all weights
    twin.num_upsamplers = 31
    return twin


class Denoiser(torch.nn.Module):  # type: ignore[misc]
    """latents (batch, channels, h, w), timestep (batch,), context (batch, length, width) -> prediction like latents."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = _for_any_size(unet)

    def forward(self, latents: Any, timestep: Any, context: Any) -> Any:
        return self.unet(latents, timestep, context, return_dict=False)[0]


class GuidedDenoiser(torch.nn.Module):  # type: ignore[misc]
    """A `Denoiser` that takes guidance (batch,) too, for models that guidance was distilled into."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = _for_any_size(unet)
        self.width = unet.config.time_cond_proj_dim
        half = self.width // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
        self.register_buffer("frequencies", frequencies)

    def forward(self, latents: Any, timestep: Any, context: Any, guidance: Any) -> Any:
        angles = (guidance - 1)[:, None] * 1000 * self.frequencies
        condition = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, self.width % 2))
        return self.unet(latents, timestep, context, timestep_cond=condition, return_dict=False)[0]


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """latents (batch, channels, h, w) -> pixels uint8 (batch, height, width, 3)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder
        self.scale = vae.config.scaling_factor

    def decode(self, latents: Any) -> Any:
        """RGB about [-1, 1], (batch, 3, height, width)."""
        latents = latents / self.scale
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))

    def forward(self, latents: Any) -> Any:
        rgb = (self.decode(latents) * 0.5 + 0.5).clamp(0, 1)
        return (rgb.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


class ImageEncoder(torch.nn.Module):  # type: ignore[misc]
    """image_pixels uint8 (batch, height, width, 3), posterior_noise (batch, channels, h, w) -> image_latents."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.quant_conv, self.encoder = vae.quant_conv, vae.encoder
        self.scale = vae.config.scaling_factor

    def moments(self, rgb: Any) -> Any:
        """Mean and log-variance of the posterior for RGB in [-1, 1]."""
        moments = self.encoder(rgb)
        return (moments if self.quant_conv is None else self.quant_conv(moments)).chunk(2, dim=1)

    def forward(self, image_pixels: Any, posterior_noise: Any) -> Any:
        mean, log_variance = self.moments(image_pixels.permute(0, 3, 1, 2).float() / 255 * 2 - 1)
        spread = torch.exp(log_variance.clamp(-30, 20) / 2)
        return (mean + spread * posterior_noise) * self.scale


# ---------------------------------------------------------------- the recipe


class _Model:
    """A loaded pipeline and its sizes."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.factor = int(pipeline.vae_scale_factor)
        self.channels = int(pipeline.unet.config.in_channels)
        self.length = int(pipeline.tokenizer.model_max_length)
        self.embedded = pipeline.unet.config.time_cond_proj_dim is not None
        self.schedule, self.samplers, self.sampler = schedules.read(pipeline.scheduler)
        self.size = self._default_size()

    def recipe(self, name: str) -> Recipe:
        content, tokenize = tokenizer_file(self.pipeline.tokenizer, _TOKENIZER)
        inputs = self._inputs(tokenize)
        return Recipe(
            task=TASK,
            family="stable-diffusion",
            inputs=inputs,
            outputs={"image": m.ImageOutput(source="pixels")},
            graphs=self._graphs(),
            program=self._program(),
            reference=Reference(self.pipeline, self._reference_size(), frozenset(inputs)).run,
            components=tuple(_MODELS),
            files={_TOKENIZER: content},
            notes=("The checkpoint's safety checker, if it has one, is not part of this bundle.",),
        )

    def _default_size(self) -> tuple[int, int]:
        """(width, height): diffusers' default for the checkpoint, or the VAE's where the UNet names none."""
        sample = self.pipeline.unet.config.sample_size
        if sample is None:
            sample = self.pipeline.vae.config.sample_size // self.factor
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return width * self.factor, height * self.factor

    def _reference_size(self) -> tuple[int, int]:
        """A small size that is not square; diffusers wants sides of 8 pixels, whatever the VAE wants."""
        unit = math.lcm(8, self.factor)
        width = max(min(self.size[0], _REFERENCE_SIDE) // unit, 2) * unit
        return width, max(width * 3 // 4 // unit, 1) * unit

    def _inputs(self, tokenize: m.Tokenize) -> dict[str, m.Input]:
        prompt = {"prompt_ids": tokenize}
        guided: dict[str, m.Input] = {
            "prompt": m.Text(tokenize=prompt, negative="negative_prompt"),
            "negative_prompt": m.Text(default=""),
            "guidance": m.Float(default=7.5, min=0.0, max=100.0),
            "guidance_rescale": m.Float(default=0.0, min=0.0, max=1.0),
        }
        embedded: dict[str, m.Input] = {
            "prompt": m.Text(tokenize=prompt),
            "guidance": m.Float(default=8.5, min=0.0, max=100.0),
        }
        most = self.schedule.train_steps
        usual = 4 if self.sampler == "lcm" else 20
        return {
            **(embedded if self.embedded else guided),
            "image": m.Image(array="image_pixels"),
            "strength": m.Float(default=0.8, min=0.0, max=1.0),
            "steps": m.Int(default=min(usual, most), min=1, max=most),
            "sampler": m.Choice(default=self.sampler, choices=tuple(self.samplers)),
            "size": m.Size(default=self.size, multiple=self.factor, max=max(_LARGEST, *self.size)),
            "num_images": m.Count(max=64),
            "seed": m.Seed(generator="noise"),
            "noise": m.Choice(default="cpu", choices=("cpu", "cuda")),
        }

    def _program(self) -> tuple[m.Stage, ...]:
        side = m.Ratio(of=("height",), per=self.factor), m.Ratio(of=("width",), per=self.factor)
        latents: m.Shape = ("batch", self.channels, *side)
        embedded = m.Guidance(kind="embedded", scale="guidance")
        free = m.Guidance(kind="classifier-free", scale="guidance", rescale="guidance_rescale")
        return (
            m.Once(graphs=("text_encoder",)),
            m.Once(graphs=("image_encoder",), when="image", draws={"posterior_noise": latents}),
            m.Diffuse(
                graphs=("denoiser",),
                latents=latents,
                schedule=self.schedule,
                samplers=self.samplers,
                sampler="sampler",
                steps="steps",
                guidance=embedded if self.embedded else free,
                start="image_latents",
                strength="strength",
                preview=self._preview(),
            ),
            m.Once(graphs=("decoder",)),
        )

    def _preview(self) -> tuple[tuple[float, float, float], ...]:
        encoder, decoder = ImageEncoder(self.pipeline.vae), Decoder(self.pipeline.vae)
        return fit_preview(lambda rgb: encoder.moments(rgb)[0] * encoder.scale, decoder.decode, self.factor)

    def _graphs(self) -> dict[str, Graph]:
        unet, vae, f = self.pipeline.unet, self.pipeline.vae, self.factor
        ids = torch.zeros(2, self.length, dtype=torch.int64)
        latents = torch.zeros(2, self.channels, 12, 10)
        context = torch.zeros(2, self.length, self.pipeline.text_encoder.config.hidden_size)
        step = {"latents": latents, "timestep": torch.ones(2), "context": context}
        small = {0: "batch", 2: "latent_height", 3: "latent_width"}
        large = {0: "batch", 1: "height", 2: "width"}
        batch = {0: "batch"}
        denoiser = GuidedDenoiser(unet) if self.embedded else Denoiser(unet)
        return {
            "text_encoder": Graph(
                TextEncoder(self.pipeline.text_encoder),
                {"prompt_ids": ids},
                ("context",),
                {"prompt_ids": {0: "texts"}, "context": {0: "texts"}},
            ),
            "image_encoder": Graph(
                ImageEncoder(vae),
                {"image_pixels": torch.zeros(2, 12 * f, 10 * f, 3, dtype=torch.uint8), "posterior_noise": latents},
                ("image_latents",),
                {"image_pixels": large, "posterior_noise": small, "image_latents": small},
            ),
            "denoiser": Graph(
                denoiser,
                step | ({"guidance": torch.ones(2)} if self.embedded else {}),
                ("prediction",),
                {"latents": small, "timestep": batch, "context": batch, "guidance": batch, "prediction": small},
            ),
            "decoder": Graph(Decoder(vae), {"latents": latents}, ("pixels",), {"latents": small, "pixels": large}),
        }
