"""Sampler tables against diffusers' own schedulers: the same timesteps, and the same latents from the same noise.

The model is a small nonlinear function of (latents, timestep) in float64. The options reach mmrt the way they do at
export, by `schedules.read` of the diffusers object, so that reading is tested too.
"""

from __future__ import annotations

import inspect
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmrt.runtime.errors import ExportError
from mmrt.runtime.samplers import Table, table

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from mmrt.export import schedules  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, many thousands

SHAPE = (2, 4, 2, 2)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
MATRIX = torch.from_numpy(np.random.default_rng(0).standard_normal((16, 16)) / 4)
EVERY = ("epsilon", "v_prediction", "sample")
KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
CASES: list[tuple[str, tuple[str, ...], list[dict[str, Any]]]] = [  # class, what it predicts, options
    ("DDIMScheduler", EVERY, [{"clip_sample": False}, {"clip_sample": False, "set_alpha_to_one": False}]),
    ("DDPMScheduler", EVERY, [{"clip_sample": False}, {"clip_sample": False, "variance_type": "fixed_small_log"}]),
    ("PNDMScheduler", EVERY[:2], [{"skip_prk_steps": True}, {"skip_prk_steps": True, "set_alpha_to_one": True}]),
    ("EulerDiscreteScheduler", EVERY, [{}, KARRAS, {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"}]),
    ("EulerAncestralDiscreteScheduler", EVERY[:2], [{}]),
    ("HeunDiscreteScheduler", EVERY, [{}, KARRAS, {"use_exponential_sigmas": True}]),
    ("LMSDiscreteScheduler", EVERY, [{}, KARRAS]),
    (
        "DPMSolverMultistepScheduler",
        EVERY,
        [
            {},
            KARRAS,
            {"solver_order": 1},
            {"solver_order": 3, "final_sigmas_type": "sigma_min"},
            {"solver_order": 3, "lower_order_final": False, "euler_at_final": True},
            {"solver_type": "heun", "final_sigmas_type": "sigma_min"},
            {"solver_type": "heun", **KARRAS},
            SDE,
            SDE | {"solver_type": "heun", "final_sigmas_type": "sigma_min"},
            SDE | KARRAS,
        ],
    ),
    (
        "UniPCMultistepScheduler",
        EVERY,
        [
            {},
            KARRAS | {"final_sigmas_type": "sigma_min"},
            {"solver_order": 1},
            {"solver_order": 3, "final_sigmas_type": "sigma_min", "lower_order_final": False},
            {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"},
        ],
    ),
    ("DEISMultistepScheduler", EVERY, [{}, {"solver_order": 1}, KARRAS | {"solver_order": 3}]),
    ("LCMScheduler", EVERY, [{}, {"original_inference_steps": 100, "timestep_scaling": 5.0}]),
]
SPACINGS = [
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
]


def model(latents: Any, timestep: Any) -> Any:
    rows = torch.as_tensor(latents, dtype=torch.float64).reshape(SHAPE[0], -1)
    return torch.tanh(rows @ MATRIX + np.sin(float(timestep) / 100 + 0.3)).reshape(SHAPE)


def noise(seed: int, dtype: Any = None) -> Any:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(SHAPE, generator=generator, dtype=dtype or torch.float64)


def theirs(scheduler: Any, steps: int, strength: float | None) -> tuple[list[float], Any]:
    """The loop of StableDiffusionPipeline, or with `strength` that of StableDiffusionImg2ImgPipeline."""
    scheduler.set_timesteps(steps)
    timesteps, first = scheduler.timesteps, next(noise(0))
    if strength is None:
        latents = first * scheduler.init_noise_sigma
    else:
        pipeline = SimpleNamespace(scheduler=scheduler)
        cut = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps
        timesteps, _ = cut(pipeline, steps, strength, "cpu")
        latents = scheduler.add_noise(torch.full_like(first, 0.5), first, timesteps[:1].repeat(SHAPE[0]))
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": torch.Generator().manual_seed(1)} if takes_noise else {}
    for timestep in timesteps:
        prediction = model(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
    return timesteps.tolist(), latents.numpy()


def ours(found: Table, image: bool, dtype: Any) -> Any:
    """The update that the runtime's loop does; `dtype` is that of diffusers' noise."""
    first, fresh = next(noise(0)).numpy(), noise(1, dtype)
    latents, history = found.signal * 0.5 + found.noise * first if image else found.initial * first, []
    for row in found.rows:
        prediction = model(row.scale * latents, row.timestep).numpy()
        history.insert(0, row.p * latents + row.q * prediction)
        latents = row.a * latents + sum(weight * past for weight, past in zip(row.b, history, strict=False))
        if row.s:
            latents = latents + row.s * next(fresh).numpy()
    return latents


def compare(scheduler: Any, *runs: tuple[int, float | None], tolerance: float = 1e-5) -> None:
    """Each run is (steps, strength); its relative error has to be below the tolerance."""
    schedule, samplers, name = schedules.read(scheduler)
    dtype = torch.float32 if samplers[name].kind == "dpmpp_2m_sde" else torch.float64
    for steps, strength in runs:
        start = 0 if strength is None else steps - min(int(steps * strength), steps)
        timesteps, latents = theirs(scheduler, steps, strength)
        found = table(schedule, samplers[name], steps, start)
        assert np.allclose([row.timestep for row in found.rows], timesteps, rtol=1e-6, atol=1e-4)
        error = np.abs(ours(found, strength is not None, dtype) - latents).max() / np.abs(latents).max()
        assert error < tolerance, f"{error:.1e} at {steps} steps, strength {strength}"


def build(cls: str, **options: Any) -> Any:
    if cls == "LMSDiscreteScheduler":
        pytest.importorskip("scipy")
    known = inspect.signature(getattr(diffusers, cls)).parameters
    return getattr(diffusers, cls)(**{name: value for name, value in (BETAS | options).items() if name in known})


def cases() -> list[Any]:
    """Every prediction and spacing with a class's first options, one prediction with its others."""
    return [
        pytest.param(cls, options | spacing, prediction, id="-".join([cls, str(number), *spacing.values(), prediction]))
        for cls, predictions, choices in CASES
        for (number, options), spacing in itertools.product(enumerate(choices), SPACINGS[: 1 if "LCM" in cls else 3])
        for prediction in predictions[: None if number == 0 else 1]
    ]


@pytest.mark.parametrize(("cls", "options", "prediction"), cases())
def test_equals_diffusers(cls: str, options: dict[str, Any], prediction: str) -> None:
    scheduler = build(cls, prediction_type=prediction, steps_offset=1, **options)
    tolerance = 5e-4 if cls == "DEISMultistepScheduler" else 1e-5  # its float32 weights cancel
    compare(scheduler, (1, None), (2, None), (4, 0.8), (20, None), (20, 0.6), tolerance=tolerance)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("spacing", SPACINGS[1:], ids=lambda spacing: spacing["timestep_spacing"])
@pytest.mark.parametrize(
    ("cls", "options", "tolerance"),
    [
        ("DDIMScheduler", {"clip_sample": False}, 1e-5),
        ("DDPMScheduler", {"clip_sample": False}, 1e-5),
        ("LCMScheduler", {}, 1e-5),
        ("EulerDiscreteScheduler", {}, 5e-4),  # latents of size 4096 in diffusers' float32
        ("EulerAncestralDiscreteScheduler", {}, 5e-4),
        ("DPMSolverMultistepScheduler", {}, 5e-5),
        ("DPMSolverMultistepScheduler", SDE, 5e-5),
        ("UniPCMultistepScheduler", {}, 5e-5),
    ],
)
def test_equals_diffusers_at_zero_terminal_snr(
    cls: str, options: dict[str, Any], tolerance: float, spacing: dict[str, Any], prediction: str
) -> None:
    if (cls, prediction) == ("EulerAncestralDiscreteScheduler", "sample"):
        pytest.skip("diffusers refuses it")
    scheduler = build(cls, prediction_type=prediction, rescale_betas_zero_snr=True, **options | spacing)
    compare(scheduler, (2, None), (20, None), (20, 0.7), tolerance=tolerance)


@pytest.mark.parametrize("steps", [3, 5, 50])
@pytest.mark.parametrize("start", range(4))
def test_pndm_counts_from_where_it_starts(steps: int, start: int) -> None:
    if start >= steps:
        pytest.skip("nothing left")
    compare(build("PNDMScheduler", skip_prk_steps=True, steps_offset=1), (steps, (steps - start) / steps))


@pytest.mark.parametrize(
    "schedule",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 400},
        {"trained_betas": np.linspace(0.001, 0.05, 200).tolist(), "num_train_timesteps": 200},
    ],
    ids=["cosine", "linear", "trained"],
)
def test_equals_diffusers_on_other_schedules(schedule: dict[str, Any]) -> None:
    for cls, options in [
        ("DDIMScheduler", {"clip_sample": False}),
        ("EulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
    ]:
        compare(build(cls, **options, **schedule), (50, None), tolerance=3e-5)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
        (
            "DDIMScheduler",
            {
                "clip_sample": False,
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
        ),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, **KARRAS}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
    ],
)
def test_alternatives_equal_from_config(cls: str, options: dict[str, Any]) -> None:
    """What mmrt offers beside the checkpoint's own is what diffusers' users get who change the scheduler."""
    scheduler = build(cls, **options)
    schedule, samplers, own = schedules.read(scheduler)
    assert samplers.keys() == schedules.OFFERED.keys()
    for name, (other, overrides) in schedules.OFFERED.items():
        if name == own:
            continue
        known = inspect.signature(getattr(diffusers, other)).parameters
        overrides = {"clip_sample": False, **BETAS, **overrides}
        swapped = getattr(diffusers, other).from_config(
            scheduler.config, **{field: value for field, value in overrides.items() if field in known}
        )
        timesteps, latents = theirs(swapped, 6, None)
        found = table(schedule, samplers[name], 6)
        assert np.allclose([row.timestep for row in found.rows], timesteps, rtol=1e-6, atol=1e-3), name
        mine = ours(found, image=False, dtype=torch.float32 if "sde" in name else torch.float64)
        assert np.abs(mine - latents).max() / np.abs(latents).max() < 5e-4, name


def test_the_own_sampler_keeps_its_options_under_a_name_that_fits() -> None:
    def name(cls: str, **options: Any) -> str:
        _, samplers, own = schedules.read(build(cls, **options))
        assert own in samplers
        return own

    assert name("DDIMScheduler", clip_sample=False) == "ddim"
    assert name("DDPMScheduler", clip_sample=False) == "ddpm"
    assert name("DPMSolverMultistepScheduler", **KARRAS, **SDE) == "dpmpp_2m_sde_karras"
    assert name("UniPCMultistepScheduler", **KARRAS) == "unipc_karras"
    assert name("EulerDiscreteScheduler", use_exponential_sigmas=True) == "euler_exponential"
    _, samplers, own = schedules.read(build("DPMSolverMultistepScheduler", solver_order=3))
    assert samplers[own].solver_order == 3


def test_what_an_alternative_cannot_say_is_left_out() -> None:
    _, samplers, _ = schedules.read(build("EulerDiscreteScheduler", prediction_type="sample"))
    assert {"pndm", "euler_ancestral"}.isdisjoint(samplers)
    scheduler = build("EulerDiscreteScheduler")
    scheduler.register_to_config(clip_sample=True)
    assert {"ddim", "lcm", "heun"}.isdisjoint(schedules.read(scheduler)[1])


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        ("KDPM2DiscreteScheduler", {}, "the scheduler KDPM2DiscreteScheduler is not supported; supported are DDIM"),
        ("DDIMScheduler", {}, "DDIMScheduler: clip_sample is True, supported is False"),
        ("DDIMScheduler", {"clip_sample": False, "thresholding": True}, "thresholding is True"),
        ("PNDMScheduler", {}, "PNDMScheduler: skip_prk_steps is False, supported is True"),
        ("DDPMScheduler", {"clip_sample": False, "variance_type": "learned_range"}, "variance_type is 'learned_range'"),
        ("DDPMScheduler", {"clip_sample": False, "beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type is 'log_linear'"),
        ("EulerDiscreteScheduler", {"sigma_min": 0.1}, "sigma_min is 0.1"),
        ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas is True"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "prediction is 'flow_prediction'"),
        ("DPMSolverMultistepScheduler", SDE | {"solver_order": 3}, "solver_order is 3"),
        ("DPMSolverMultistepScheduler", KARRAS | {"beta_schedule": "squaredcos_cap_v2"}, "use_karras_sigmas is True"),
        ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, "use_exponential_sigmas is True"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0 is False"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector is [0]"),
    ],
)
def test_a_scheduler_that_cannot_be_said_is_refused(cls: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError) as error:
        schedules.read(build(cls, **options))
    assert message in str(error.value)
