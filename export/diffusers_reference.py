"""Golden data of text-to-image models, taken from diffusers' own pipeline objects while they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden
from mmrt.runtime.arrays import AnyArray, UInt8
from mmrt.runtime.receipt import Case

_PROMPTS = ["a red heart", "a small house by the sea, 蓝色的海"]
CASES: dict[str, dict[str, Any]] = {  # requests, in the manifest's words
    "guided": {"prompt": _PROMPTS, "steps": 4, "guidance": 7.5, "seed": 1},
    "unguided": {"prompt": _PROMPTS[:1], "steps": 2, "guidance": 1.0, "seed": 2},
    "negative": {
        "prompt": _PROMPTS[1:], "negative_prompt": ["blurry"],
        "steps": 3, "guidance": 5.0, "guidance_rescale": 0.7, "seed": 3,
    },
    "image": {"prompt": _PROMPTS[:1], "steps": 5, "strength": 0.6, "guidance": 4.0, "seed": 4},
}  # fmt: skip
_RENAMED = {"steps": "num_inference_steps", "guidance": "guidance_scale"}


class Reference:
    """Runs the cases through a text-to-image pipeline and its image-to-image sibling, which share their models."""

    def __init__(self, pipeline: Any, size: tuple[int, int], offered: frozenset[str]) -> None:
        """`size` is (width, height) of the pictures; `offered` are the manifest's inputs: other values are left out."""
        self._text_to_image = pipeline
        with quiet():
            sibling = diffusers.StableDiffusionImg2ImgPipeline
            self._image_to_image = sibling(**pipeline.components, requires_safety_checker=False)
        self._image_to_image.set_progress_bar_config(disable=True)
        self._size = size
        self._offered = offered
        self._arrays: dict[str, AnyArray] = {}
        self._calls: dict[str, int] = {}

    def run(self) -> Golden:
        """All cases, and some calls of every graph in them."""
        cases = tuple(self._case(name, request) for name, request in CASES.items())
        return Golden(f"diffusers {diffusers.__version__}, torch {torch.__version__}, fp32 on cpu", self._arrays, cases)

    def _case(self, name: str, request: dict[str, Any]) -> Case:
        request = {key: value for key, value in request.items() if key in self._offered}
        width, height = self._size
        with quiet(), torch.no_grad(), self._recorded(request):
            pixels, latents, picture = self._generate(request)
        self._call("decoder", {"latents": latents}, {"pixels": pixels})
        self._arrays |= {f"run/{name}/out/latents": latents, f"run/{name}/out/pixels": pixels}
        if picture is not None:
            self._arrays[f"run/{name}/in/image"] = picture
        return Case(name=name, request=request | {"size": f"{width}x{height}"})

    def _generate(self, request: dict[str, Any]) -> tuple[UInt8, AnyArray, UInt8 | None]:
        options = {_RENAMED.get(key, key): value for key, value in request.items() if key != "seed"}
        seeds = range(request["seed"], request["seed"] + len(request["prompt"]))
        options["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        ends: list[AnyArray] = []

        def keep_latents(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            ends[:] = [_array(values["latents"])]
            return {}

        width, height = self._size
        picture = None
        if "strength" in request:
            picture = test_picture(width, height)[None]
            images = self._image_to_image.numpy_to_pil(picture.astype(np.float32) / 255)
            result = self._image_to_image(image=images, callback_on_step_end=keep_latents, **options)
        else:
            result = self._text_to_image(width=width, height=height, callback_on_step_end=keep_latents, **options)
        return np.stack([np.asarray(image.convert("RGB")) for image in result.images]), ends[0], picture

    @contextmanager
    def _recorded(self, request: dict[str, Any]) -> Iterator[None]:
        """Keep every call of the text encoder, the first and last of the UNet, and what the VAE encoded."""
        unet_calls: list[tuple[dict[str, AnyArray], dict[str, AnyArray]]] = []

        def text_encoder(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._call("text_encoder", {"prompt_ids": _array(args[0])}, {"context": _array(output[0])})

        def unet(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            rows = len(args[0])
            inputs = {
                "latents": _array(args[0]),
                "timestep": np.full(rows, float(args[1]), np.float32),
                "context": _array(kwargs["encoder_hidden_states"]),
            }
            if kwargs.get("timestep_cond") is not None:
                inputs["guidance"] = np.full(rows, request["guidance"], np.float32)
            unet_calls[1:] = [(inputs, {"prediction": _array(output[0])})]

        pipeline = self._text_to_image
        hooks = [
            pipeline.text_encoder.register_forward_hook(text_encoder, with_kwargs=True),
            pipeline.unet.register_forward_hook(unet, with_kwargs=True),
        ]
        try:
            with self._recorded_encoder(request):
                yield
        finally:
            for hook in hooks:
                hook.remove()
        for inputs, outputs in unet_calls:
            self._call("denoiser", inputs, outputs)

    @contextmanager
    def _recorded_encoder(self, request: dict[str, Any]) -> Iterator[None]:
        """What image-to-image gives its scheduler to add noise to are the picture's scaled latents.

        The encoder's own noise is the first that a seed gives, drawn here once more.
        """
        scheduler = self._image_to_image.scheduler
        add_noise = scheduler.add_noise

        def recorded(samples: Any, noise: Any, timesteps: Any) -> Any:
            generator = torch.Generator("cpu").manual_seed(request["seed"])
            posterior_noise = randn_tensor(samples.shape, generator=generator)
            width, height = self._size
            inputs = {"image_pixels": test_picture(width, height)[None], "posterior_noise": _array(posterior_noise)}
            self._call("image_encoder", inputs, {"image_latents": _array(samples)})
            return add_noise(samples, noise, timesteps)

        scheduler.add_noise = recorded
        try:
            yield
        finally:
            del scheduler.add_noise

    def _call(self, graph: str, inputs: dict[str, AnyArray], outputs: dict[str, AnyArray]) -> None:
        number = self._calls[graph] = self._calls.get(graph, -1) + 1
        self._arrays |= {f"graph/{graph}/{number}/in/{name}": array for name, array in inputs.items()}
        self._arrays |= {f"graph/{graph}/{number}/out/{name}": array for name, array in outputs.items()}


def test_picture(width: int, height: int) -> UInt8:
    """A picture to start from: uint8 (height, width, 3), two gradients and a square."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([255 * x // width, 255 * y // height, (x // 8 + y // 8) % 2 * 200], axis=-1).astype(np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = (220, 40, 60)
    return picture


def _array(tensor: Any) -> AnyArray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy().copy())
