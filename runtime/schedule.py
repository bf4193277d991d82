"""How a diffusion model was trained to see noise, and how much of it each training timestep holds."""

from __future__ import annotations

import math
from typing import Literal, get_args, get_origin

import msgspec
import numpy as np
from numpy.typing import NDArray

Prediction = Literal["epsilon", "v_prediction", "sample"]


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """How the model was trained: what it predicts, and the variance `beta` that each of its timesteps adds.

    `v_prediction` is alpha eps - sigma x0 (arXiv 2202.00512, appendix D). `scaled_linear` is linear in sqrt(beta);
    `squaredcos_cap_v2` (arXiv 2102.09672, eq. 17) takes no start or end. `betas` lists all of them instead.
    Raises `ValueError` naming the field and its value.
    """

    prediction: Prediction
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    train_steps: int = 1000
    betas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        need_choices(self)
        need(1 <= self.train_steps <= 100_000, "train_steps", self.train_steps, "1 to 100000")
        need(0 < self.beta_start < 1, "beta_start", self.beta_start, "a number between 0 and 1")
        need(0 < self.beta_end < 1, "beta_end", self.beta_end, "a number between 0 and 1")
        need(len(self.betas) in (0, self.train_steps), "len(betas)", len(self.betas), f"0 or {self.train_steps}")
        for index, beta in enumerate(self.betas):
            need(0 < beta < 1, f"betas[{index}]", beta, "a number between 0 and 1")


def need(holds: bool, field: str, value: object, wanted: str) -> None:
    """Raise `ValueError` naming the field and its value unless it `holds`."""
    if not holds:
        raise ValueError(f"{field} is {value!r}, wanted {wanted}")


def need_choices(struct: msgspec.Struct) -> None:
    """Refuse values that are none of their field's literals: msgspec checks them only when it decodes."""
    for field in msgspec.structs.fields(struct):
        if get_origin(field.type) is Literal:
            value, choices = getattr(struct, field.name), get_args(field.type)
            need(value in choices, field.name, value, f"one of {', '.join(choices)}")


def alphas_cumprod(schedule: Schedule, zero_snr: bool = False) -> NDArray[np.float64]:
    """alpha^2 of each training timestep, (train_steps,), rounded to float32 where training rounds it."""
    count = schedule.train_steps
    betas: NDArray[np.float32]
    if schedule.betas:
        betas = np.asarray(schedule.betas, np.float32)
    elif schedule.beta_schedule == "squaredcos_cap_v2":
        level = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], 0.999).astype(np.float32)
    else:
        power = 2 if schedule.beta_schedule == "scaled_linear" else 1
        first, last = schedule.beta_start ** (1 / power), schedule.beta_end ** (1 / power)
        betas = np.linspace(first, last, count).astype(np.float32) ** power
    bar = _cumprod(betas)
    if zero_snr:
        root = np.sqrt(bar)
        bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        bar = _cumprod(1 - np.append(bar[:1], bar[1:] / bar[:-1]))
    return bar.astype(np.float64)


def _cumprod(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
