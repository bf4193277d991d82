"""A checkpoint's diffusers scheduler as mmrt's `Schedule` and `Sampler`s.

diffusers resolves every configuration itself: an alternative is `Class.from_config(scheduler.config, ...)`, as its
users write it, and the outcome is translated. What changes the numbers and cannot be said is refused, never dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from mmrt.runtime.errors import ExportError
from mmrt.runtime.samplers import TAKES, Sampler
from mmrt.runtime.schedule import Schedule

_OWN_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS = _OWN_SIGMAS | {"use_karras_sigmas": True}
_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_lu_lambdas": False}
_DPMPP_2M_SDE = _DPMPP_2M | {"algorithm_type": "sde-dpmsolver++"}

OFFERED: dict[str, tuple[str, dict[str, Any]]] = {  # name: diffusers' class, and what a user would set on it
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", _OWN_SIGMAS),
    "euler_karras": ("EulerDiscreteScheduler", _KARRAS),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", _OWN_SIGMAS),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", _OWN_SIGMAS | _DPMPP_2M),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", _KARRAS | _DPMPP_2M),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", _OWN_SIGMAS | _DPMPP_2M_SDE),
    "dpmpp_2m_sde_karras": ("DPMSolverMultistepScheduler", _KARRAS | _DPMPP_2M_SDE),
    "unipc": ("UniPCMultistepScheduler", _OWN_SIGMAS),
    "lcm": ("LCMScheduler", {}),
}

_KINDS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm",
}

_SCHEDULE = ("prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas")

_RENAMED = {  # diffusers' field: ours
    "timestep_spacing": "spacing",
    "steps_offset": "steps_offset",
    "rescale_betas_zero_snr": "zero_snr",
    "final_sigmas_type": "final_sigma",
    "solver_order": "solver_order",
    "solver_type": "solver_type",
    "lower_order_final": "lower_order_final",
    "euler_at_final": "euler_at_final",
    "original_inference_steps": "original_steps",
    "timestep_scaling": "timestep_scaling",
}

_FIXED: dict[str, tuple[Any, ...]] = {  # the values that can be said of fields that are not renamed
    "clip_sample": (False,),
    "skip_prk_steps": (True,),
    "set_alpha_to_one": (True, False),
    "use_karras_sigmas": (True, False, None),
    "use_exponential_sigmas": (True, False, None),
    "use_beta_sigmas": (False, None),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
    "variance_type": (None, "fixed_small", "fixed_small_log"),
    "disable_corrector": ([], ()),
}

_IDLE = {  # fields that do nothing while the others are as said
    "dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "flow_shift", "time_shift_type",
}  # fmt: skip


def read(scheduler: Any) -> tuple[Schedule, dict[str, Sampler], str]:
    """How the model was trained, the samplers to offer for it, and the name of the checkpoint's own.

    `scheduler` is a diffusers scheduler. Its own sampler keeps its exact options under the name that fits them; the
    others stand in `OFFERED`, less those that cannot be said of this checkpoint.
    Raises `ExportError` naming the checkpoint's class or field, its value and what is supported.
    """
    schedule, own = _translate(scheduler)
    name = own.kind if own.sigmas == "schedule" else f"{own.kind}_{own.sigmas}"
    facts = {field: scheduler.config[field] for field in _SCHEDULE if field in scheduler.config}
    samplers = {}
    for other, (cls, overrides) in OFFERED.items():
        if other == name:
            samplers[other] = own
        elif (found := _alternative(scheduler.config, cls, overrides | facts)) and found[0] == schedule:
            samplers[other] = found[1]
    return schedule, {name: own} | samplers, name


def _alternative(config: Mapping[str, Any], cls: str, overrides: dict[str, Any]) -> tuple[Schedule, Sampler] | None:
    if not _states_clipping(config):
        overrides = overrides | {"clip_sample": False}  # not every class's default fits a model that never said so
    diffusers_class = getattr(diffusers, cls)
    known = {name: value for name, value in overrides.items() if name in _parameters(diffusers_class)}
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()  # it warns of every field that the other class does not know
    try:
        return _translate(diffusers_class.from_config(config, **known))
    except (ExportError, NotImplementedError, ValueError, ImportError):
        return None
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)


def _states_clipping(config: Mapping[str, Any]) -> bool:
    return bool(config.get("clip_sample")) and "clip_sample" not in config.get("_use_default_values", ())


def _translate(scheduler: Any) -> tuple[Schedule, Sampler]:
    cls, config = type(scheduler), scheduler.config
    name = cls.__name__
    if name not in _KINDS:
        raise ExportError(f"the scheduler {name} is not supported; supported are {', '.join(sorted(_KINDS))}")
    parameters = _parameters(cls)
    for field, default in parameters.items():
        if field not in _RENAMED and field not in _SCHEDULE and field not in _IDLE:
            _need(name, field, config.get(field, default), _FIXED.get(field, (default,)))
    for field in ("sigma_min", "sigma_max"):  # read from the configuration even where they are no parameter
        _need(name, field, config.get(field), (None,))
    kind = _kind(name, config)
    fields = {_RENAMED[field]: config[field] for field in parameters if field in _RENAMED}
    fields |= {"kind": kind, "sigmas": _sigmas(name, config), "final_sigma": _final_sigma(parameters, config)}
    try:
        sampler = Sampler(**{field: value for field, value in fields.items() if field in TAKES[kind]})
        schedule = Schedule(
            prediction=config["prediction_type"],
            beta_schedule=config["beta_schedule"],
            beta_start=float(config["beta_start"]),
            beta_end=float(config["beta_end"]),
            train_steps=config["num_train_timesteps"],
            betas=tuple(map(float, config["trained_betas"])) if config["trained_betas"] is not None else (),
        )
    except ValueError as error:
        raise ExportError(f"{name}: {error}") from None
    if kind in ("pndm", "euler_ancestral"):
        _need(name, "prediction_type", schedule.prediction, ("epsilon", "v_prediction"))
    return schedule, sampler


def _parameters(cls: type) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters
    return {name: parameter.default for name, parameter in parameters.items() if not name.startswith("_")}


def _kind(name: str, config: Mapping[str, Any]) -> str:
    sde = name == "DPMSolverMultistepScheduler" and config["algorithm_type"].startswith("sde")
    return f"{_KINDS[name]}_sde" if sde else _KINDS[name]


def _sigmas(name: str, config: Mapping[str, Any]) -> str:
    if config.get("use_exponential_sigmas"):
        if "Multistep" in name:  # diffusers cuts these timesteps to whole ones, at the mercy of the last bit
            raise ExportError(f"{name}: use_exponential_sigmas is True, supported is False")
        return "exponential"
    if not config.get("use_karras_sigmas"):
        return "schedule"
    if name == "DPMSolverMultistepScheduler" and config["beta_schedule"] == "squaredcos_cap_v2":  # likewise
        raise ExportError(f"{name}: use_karras_sigmas is True with squaredcos_cap_v2, supported is False")
    return "karras"


def _final_sigma(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if "set_alpha_to_one" in parameters:
        return "zero" if config["set_alpha_to_one"] else "sigma_min"
    return str(config["final_sigmas_type"]) if "final_sigmas_type" in parameters else "zero"


def _need(name: str, field: str, value: Any, supported: tuple[Any, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in supported):
        choices = " or ".join(map(repr, supported))
        raise ExportError(f"{name}: {field} is {value!r}, supported is {choices}")
