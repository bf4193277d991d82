"""The pictures of a bundle are those of diffusers' own pipelines on the same checkpoint and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from checkpoints import graphs_of
from PIL import Image

import mmrt
from mmrt.runtime import manifest as m
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.receipt import compare

EMOJI = Path(__file__).parents[2] / "examples" / "emoji" / "checkpoint"
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
}
PROMPTS = ["a red heart", "the green tree 红心"]


torch.set_num_threads(1)  # the models are tiny, and threads that wait for each other cost most of the time


class Source:
    """diffusers' pipelines of one checkpoint, in fp32, and the bundle made from it."""

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        self.text2image = diffusers.StableDiffusionPipeline.from_pretrained(
            checkpoint, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        self.text2image.set_progress_bar_config(disable=True)
        self.config = self.text2image.scheduler.config
        self.pipeline = mmrt.load(bundle, threads=1)

    def diffusers(self, sampler: str, steps: int, guidance: float, seeds: list[int], **inputs: Any) -> dict[str, Any]:
        """Latents and pixels, as the runtime names them, from one run of diffusers each."""
        name, overrides = SAMPLERS[sampler]
        kind = diffusers.StableDiffusionImg2ImgPipeline if "image" in inputs else diffusers.StableDiffusionPipeline
        pipe = kind(**self.text2image.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = getattr(diffusers, name).from_config(self.config, **overrides)
        latents: list[Any] = []

        def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            latents[:] = [values["latents"].numpy()]
            return {}

        pictures = pipe(
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=keep,
            **inputs,
        ).images
        return {"latents": latents[0], "pixels": np.stack([np.asarray(picture) for picture in pictures])}

    def same(self, sampler: str, steps: int, guidance: float, source: dict[str, Any], ours: dict[str, Any]) -> None:
        """Assert that both give the same latents and pixels at seeds 7 and 8."""
        wanted = self.diffusers(sampler, steps, guidance, [7, 8], prompt=PROMPTS, **source)
        found = self.pipeline.arrays(prompt=PROMPTS, sampler=sampler, steps=steps, guidance=guidance, seed=7, **ours)
        for name, array in wanted.items():
            check = compare(name, found[name], array, "fp32")
            assert check.passed, (sampler, steps, guidance, sorted(ours), check)


@pytest.fixture(scope="module")
def sd1(sd1_checkpoint: Path, sd1_bundle: Path) -> Source:
    return Source(sd1_checkpoint, sd1_bundle)


@pytest.fixture(scope="module")
def sd2(sd2_checkpoint: Path, sd2_bundle: Path) -> Source:
    return Source(sd2_checkpoint, sd2_bundle)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Source:
    from mmrt.export.exporter import export

    bundle = tmp_path_factory.mktemp("emoji") / "emoji.mmrt"
    for _ in export(EMOJI, bundle):
        pass
    return Source(EMOJI, bundle)


def test_every_graph_becomes_an_engine_in_fp16(emoji: Source, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from mmrt.export.exporter import export

    with graphs_of(emoji.pipeline.bundle.path):
        for _ in export(EMOJI, tmp_path / "emoji.mmrt", targets=("tensorrt-rtx",)):
            pass
    manifest = Bundle(tmp_path / "emoji.mmrt").manifest
    for name, graph in manifest.graphs.items():
        [variant] = graph.variants
        assert variant.file == f"engines/{name}.fp16.tensorrt-rtx.engine"
        assert manifest.files[variant.file].bytes > 1_000_000
    [denoiser] = manifest.graphs["denoiser"].variants
    assert denoiser.build is not None
    assert denoiser.build.profiles[0]["latent_width"] == m.Range(min=1, opt=8, max=16)


@pytest.fixture
def picture() -> Image.Image:
    y, x = np.mgrid[:72, :64]
    pixels = np.stack([x * 3, y * 2, 255 - x - y], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("model", ["sd1", "sd2", "emoji"])
def test_pictures_equal_diffusers(
    model: str, sampler: str, steps: int, picture: Image.Image, request: pytest.FixtureRequest
) -> None:
    source: Source = request.getfixturevalue(model)
    if steps == 50 and model == "sd2":
        pytest.skip("50 steps are checked on the other two")
    if (model, sampler, steps) == ("emoji", "dpmpp_2m_karras", 50):
        pytest.skip("diffusers itself ends in an IndexError: at zero terminal SNR its first timestep comes twice")
    size = {"width": 64, "height": 64}
    for guidance in (1.0, 4.0):
        source.same(sampler, steps, guidance, size, {"size": (64, 64)})
    strength = {"image": picture, "strength": 0.6 if steps > 1 else 1.0}
    source.same(sampler, steps, 4.0, strength, strength)


@pytest.mark.parametrize("size", [(64, 64), (72, 40), (88, 136)])
def test_any_legal_size(sd1: Source, size: tuple[int, int]) -> None:
    sd1.same("ddim", 3, 4.0, {"width": size[0], "height": size[1]}, {"size": size})


def test_negative_prompts_and_rescale(sd2: Source) -> None:
    more = {"negative_prompt": ["blue", "car"], "guidance_rescale": 0.7}
    sd2.same("ddim", 4, 6.0, more | {"width": 64, "height": 64}, more | {"size": (64, 64)})


def test_one_prompt_and_several_images(sd1: Source) -> None:
    wanted = sd1.diffusers(
        "euler", 4, 4.0, [3, 4, 5], prompt="a red heart", num_images_per_prompt=3, width=64, height=64
    )
    found = sd1.pipeline.arrays(
        prompt="a red heart", sampler="euler", steps=4, guidance=4.0, seed=3, num_images=3, size="64x64"
    )
    for name, array in wanted.items():
        assert compare(name, found[name], array, "fp32").passed


def test_image_to_image_at_little_strength(sd1: Source, picture: Image.Image) -> None:
    more = {"image": picture, "strength": 0.3}
    for sampler in SAMPLERS:
        sd1.same(sampler, 10, 4.0, more, more)


def test_a_long_prompt_is_cut_where_diffusers_cuts_it(sd1: Source) -> None:
    prompt = "the red heart drives home by the green tree " * 20
    wanted = sd1.diffusers("ddim", 2, 4.0, [7], prompt=prompt, width=64, height=64)
    with pytest.warns(mmrt.RequestWarning, match="was cut; left out"):
        found = sd1.pipeline.arrays(prompt=prompt, sampler="ddim", steps=2, guidance=4.0, seed=7, size="64x64")
    for name, array in wanted.items():
        assert compare(name, found[name], array, "fp32").passed
