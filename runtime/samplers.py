"""Samplers as tables: a pure function makes every coefficient of the loop before it starts, in float64.

A row is one call of the model, and every row of every sampler drives the same update:

    v       = the guided prediction at (scale_i x_i, timesteps_i)
    h_i     = p_i x_i + q_i v                              # what this sampler keeps a history of
    x_{i+1} = a_i x_i + sum_k b_ik h_{i-k} + s_i z_i       # z_i: fresh noise, drawn only where s_i is not 0

A state is either x = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1 ("preserving": DDIM, PNDM, DPM-Solver, UniPC,
DEIS, LCM) or that divided by alpha, x = x0 + sigma' eps with sigma' = sigma / alpha ("exploding": Euler, Heun, LMS),
which the model sees times alpha. The numbers are those of diffusers' scheduler classes, quirks included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from mmrt.runtime.errors import RequestError
from mmrt.runtime.schedule import Prediction, Schedule, alphas_cumprod, need, need_choices

Array = NDArray[np.float64]

_COMMON = {"kind", "spacing", "steps_offset"}
_MULTISTEP = _COMMON | {"zero_snr", "final_sigma", "sigmas", "solver_order", "lower_order_final"}
TAKES: dict[str, set[str]] = {  # which fields of `Sampler` a kind knows; any other must keep its default
    "ddim": _COMMON | {"zero_snr", "final_sigma", "eta"},
    "ddpm": _COMMON | {"zero_snr"},
    "pndm": _COMMON | {"final_sigma"},
    "euler": _COMMON | {"zero_snr", "final_sigma", "sigmas"},
    "euler_ancestral": _COMMON | {"zero_snr"},
    "heun": _COMMON | {"sigmas"},
    "lms": _COMMON | {"sigmas"},
    "dpmpp_2m": _MULTISTEP | {"solver_type", "euler_at_final"},
    "dpmpp_2m_sde": _MULTISTEP | {"solver_type", "euler_at_final"},
    "unipc": _MULTISTEP | {"solver_type"},
    "deis": _COMMON | {"sigmas", "solver_order", "lower_order_final"},
    "lcm": {"kind", "zero_snr", "original_steps", "timestep_scaling"},
}


class Sampler(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One way to sample. A field that `kind` does not take (see `TAKES`) must keep its default.

    kind               a key of `SAMPLERS`
    spacing            which training timesteps are visited (arXiv 2305.08891, table 2)
    steps_offset       added to the timesteps of leading spacing
    zero_snr           rescale the betas so that the last timestep is pure noise (arXiv 2305.08891, algorithm 1)
    final_sigma        the noise left at the end: none, or that of the first training timestep
    sigmas             noise levels: the schedule's own, spaced after Karras (arXiv 2206.00364, eq. 5), or geometrically
    eta                DDIM's fresh noise: 0 deterministic, 1 ancestral (arXiv 2010.02502, eq. 16)
    solver_order       1 to 3 (`dpmpp_2m_sde`: 1 or 2)
    solver_type        DPM-Solver++: "heun", else midpoint. UniPC: "bh1", else bh2
    lower_order_final  the last steps fall to lower orders (DPM-Solver++ and DEIS: only below 15 steps)
    euler_at_final     the last step is of first order at any number of steps
    original_steps     timesteps of the teacher that an LCM was distilled on
    timestep_scaling   how fast an LCM's boundary condition fades in (arXiv 2310.04378)

    Raises `ValueError` naming the field and its value.
    """

    kind: Literal[
        "ddim", "ddpm", "pndm", "euler", "euler_ancestral", "heun", "lms",
        "dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis", "lcm",
    ]  # fmt: skip
    spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: int = 0
    zero_snr: bool = False
    final_sigma: Literal["zero", "sigma_min"] = "zero"
    sigmas: Literal["schedule", "karras", "exponential"] = "schedule"
    eta: float = 0.0
    solver_order: int = 2
    solver_type: Literal["midpoint", "heun", "bh1", "bh2"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    original_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        need_choices(self)
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            known = field.name in TAKES[self.kind] or value == field.default
            need(known, field.name, value, f"{field.default!r}: the sampler {self.kind!r} does not know it")
        most = 2 if self.kind == "dpmpp_2m_sde" else 3
        need(1 <= self.solver_order <= most, "solver_order", self.solver_order, f"1 to {most}")
        need(0 <= self.steps_offset <= 100_000, "steps_offset", self.steps_offset, "0 or a little more")
        need(0 <= self.eta <= 1, "eta", self.eta, "0 to 1")
        need(1 <= self.original_steps <= 100_000, "original_steps", self.original_steps, "1 to 100000")
        need(0 < self.timestep_scaling < math.inf, "timestep_scaling", self.timestep_scaling, "more than 0")


@dataclass(frozen=True)
class Row:
    """One call of the model and the update after it; all numbers are finite.

    b[k] weighs h_{i-k}, and is 0 where there is no h_{i-k} yet; every row of a table has as many.
    denoised = (u, w): the model takes the clean sample to be u x_i + w v.
    A clean x0 is at this row's noise level as signal x0 + noise z.
    """

    timestep: float
    scale: float
    p: float
    q: float
    a: float
    b: tuple[float, ...]
    s: float
    denoised: tuple[float, float]
    signal: float
    noise: float


class Coefficients(NamedTuple):
    """What a row of `Table.coefficients` holds before its b: numbers that are float32.

    draws is how many rows before drew fresh noise; the guided prediction is brought to the conditional one's spread by
    the share rescale, and left by unscaled; all others are `Row`'s.
    """

    timestep: float
    scale: float
    p: float
    q: float
    a: float
    s: float
    signal: float
    noise: float
    denoised_x: float
    denoised_v: float
    draws: float
    guidance: float
    rescale: float
    unscaled: float

    @classmethod
    def of(cls, table: NDArray[np.float32], row: int) -> tuple[Coefficients, list[float]]:
        """A row of a table, and its b."""
        numbers = table[row].tolist()
        return cls(*numbers[: len(COLUMNS)]), numbers[len(COLUMNS) :]


COLUMNS = Coefficients._fields


@dataclass(frozen=True)
class Table:
    """The rows of a loop. Heun has 2 n - 1 for n steps, PNDM n + 1, all others n.

    Generation from nothing starts at initial z, image-to-image at signal x0 + noise z.
    """

    rows: tuple[Row, ...]
    initial: float

    @property
    def signal(self) -> float:
        """The share of a given x0 in the first row's state."""
        return self.rows[0].signal

    @property
    def noise(self) -> float:
        """The share of noise in the first row's state, beside `signal`."""
        return self.rows[0].noise

    def coefficients(self, guidance: float = 1.0, rescale: float = 0.0) -> NDArray[np.float32]:
        """The table as a device reads it, (rows + 1, `Coefficients` and then b).

        The last row is where the loop ends, at no noise: it does nothing, and its scale is 1.
        """
        draws = np.cumsum([0, *(row.s != 0 for row in self.rows)]).tolist()
        end = Row(0, 1, 0, 0, 1, (0,) * len(self.rows[0].b), 0, (1, 0), 1, 0)
        guided = guidance, rescale, 1 - rescale
        rows = [
            (r.timestep, r.scale, r.p, r.q, r.a, r.s, r.signal, r.noise, *r.denoised, drawn, *guided, *r.b)
            for r, drawn in zip((*self.rows, end), draws, strict=True)
        ]
        return np.array(rows, np.float32)


def table(schedule: Schedule, sampler: Sampler, steps: int, start: int = 0) -> Table:
    """The rows for `steps` steps, of which image-to-image skips the first `start`, steps - int(steps * strength).

    Raises `RequestError` where the sampler cannot do these steps on this schedule.
    """
    if not 1 <= steps <= schedule.train_steps:
        raise RequestError(f"steps is {steps}, wanted 1 to {schedule.train_steps}")
    if not 0 <= start < steps:
        raise RequestError(f"start is {start}, wanted 0 to {steps - 1}: at least one of {steps} steps must be left")
    with np.errstate(all="ignore"):
        found = SAMPLERS[sampler.kind](schedule, sampler, steps, start)
    if not all(
        math.isfinite(value) for row in found.rows for value in (row.p, row.q, row.a, *row.b, row.s, *row.denoised)
    ):
        snr = " at zero terminal SNR" if sampler.zero_snr else ""
        what = f"{steps} steps of {sampler.spacing} spacing on {schedule.prediction!r}{snr}"
        raise RequestError(f"the sampler {sampler.kind!r} has no finite numbers for {what}")
    return found


# ---------------------------------------------------------------- noise levels


def _spaced(schedule: Schedule, sampler: Sampler, steps: int, fences: int = 0) -> Array:
    """Training timesteps to visit, falling, (steps,). `fences` 1: one more is laid out, the lowest, and not visited."""
    count, points = schedule.train_steps, steps + fences
    spaced: Array
    if sampler.spacing == "trailing":
        spaced = np.arange(count, 0, -count / steps, dtype=np.float64).round() - 1
    elif sampler.spacing == "leading":
        spaced = np.arange(points, dtype=np.float64)[::-1] * (count // points) + sampler.steps_offset
    else:
        spaced = np.linspace(0, count - 1, points, dtype=np.float64)[::-1]
    if spaced[0] > count - 1 or (sampler.spacing == "leading" and points > count):
        how = f"{sampler.spacing} spacing with steps_offset {sampler.steps_offset}"
        raise RequestError(f"steps is {steps}, too many for {how} on {count} timesteps")
    return spaced[:steps]


def _levels(schedule: Schedule, sampler: Sampler, steps: int, *, multistep: bool) -> tuple[Array, Array]:
    """Timesteps (steps,) and the levels sigma' = sigma / alpha between which the steps go, (steps + 1,), both falling.

    The `multistep` classes of diffusers feed whole timesteps and span Karras' levels over the whole schedule; the
    others feed fractions, and span what they visit.
    """
    bar = alphas_cumprod(schedule, sampler.zero_snr)
    if sampler.zero_snr:
        bar[-1] = 2**-24  # a level of 4096 stands for infinity
    every = np.sqrt((1 - bar) / bar)
    timesteps = _spaced(schedule, sampler, steps, fences=int(multistep))
    timesteps = timesteps.round() if multistep else _float32(timesteps)
    sigmas = np.interp(timesteps, np.arange(len(every)), every)
    if sampler.sigmas != "schedule":
        high, low = (every[-1], every[0]) if multistep else (sigmas[0], sigmas[-1])
        sigmas = _karras(high, low, steps) if sampler.sigmas == "karras" else np.geomspace(high, low, steps)
        timesteps = np.interp(np.log(sigmas), np.log(every), np.arange(len(every)))
        timesteps = timesteps.round() if multistep else _float32(timesteps)
    lowest = sigmas[-1] if sampler.kind in ("unipc", "deis") and sampler.sigmas != "schedule" else every[0]
    last = lowest if sampler.final_sigma == "sigma_min" or sampler.kind == "deis" else 0.0
    return timesteps, _float32(np.append(sigmas, last))


def _karras(high: float, low: float, steps: int, rho: float = 7.0) -> Array:
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho  # arXiv 2206.00364, eq. 5


def _float32(values: Array) -> Array:
    return values.astype(np.float32).astype(np.float64)


# ---------------------------------------------------------------- rows


def _reading(prediction: Prediction, wanted: Prediction, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """(p, q) with wanted = p x + q v, where v is the model's `prediction` at x = alpha x0 + sigma eps."""
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    return {
        ("v_prediction", "sample"): (alpha, -sigma),
        ("v_prediction", "epsilon"): (sigma, alpha),
        ("epsilon", "sample"): (1 / alpha, -sigma / alpha),
        ("sample", "epsilon"): (1 / sigma, -alpha / sigma),
    }.get((prediction, wanted), (zero, one))


def _preserving(
    schedule: Schedule, timesteps: Array, bar: Array, a: Array, b: Array, s: Array | None = None, *, history: Prediction
) -> Table:
    """Rows on x = alpha x0 + sigma eps, with alpha^2 = bar."""
    alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    s = np.zeros_like(bar) if s is None else s
    read = _reading(schedule.prediction, history, alpha, sigma)
    denoised = np.stack(_reading(schedule.prediction, "sample", alpha, sigma), 1)
    return Table(_rows(timesteps, np.ones_like(bar), *read, a, b, s, denoised, alpha, sigma), initial=1.0)


def _exploding(
    schedule: Schedule, sampler: Sampler, timesteps: Array, sigmas: Array, top: float, b: Array, s: Array | None = None
) -> Table:
    """Rows on x = x0 + sigma' eps, whose history is the derivative dx/dsigma' = eps, and whose a is 1."""
    alpha, one = _alpha(sigmas), np.ones_like(sigmas)
    s = 0 * one if s is None else s
    p, q = _reading(schedule.prediction, "epsilon", alpha, sigmas * alpha)
    x, v = _reading(schedule.prediction, "sample", alpha, sigmas * alpha)
    rows = _rows(timesteps, alpha, p * alpha, q, one, b, s, np.stack([x * alpha, v], 1), one, sigmas)
    return Table(rows, initial=math.sqrt(top**2 + (sampler.spacing == "leading")))


def _alpha(sigmas: Array) -> Array:
    return 1 / np.sqrt(sigmas**2 + 1)


def _rows(
    timesteps: Array, scale: Array, p: Array, q: Array, a: Array, b: Array, s: Array, *others: Array
) -> tuple[Row, ...]:
    if b.shape[1] == 1:  # without a history h is v itself, which spares float32 large terms that cancel
        a, b, p, q = a + b[:, 0] * p, b * q[:, None], np.zeros_like(p), np.ones_like(q)
    columns = (timesteps, scale, p, q, a, b, s, *others)
    lists = (map(tuple, column.tolist()) if column.ndim == 2 else column.tolist() for column in columns)
    return tuple(Row(*values) for values in zip(*lists, strict=True))


# ---------------------------------------------------------------- samplers on alpha^2 of whole timesteps


def ddim(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """DDIM (arXiv 2010.02502, eq. 12 and 16). A step goes down train_steps // steps timesteps, whatever the spacing."""
    timesteps = _spaced(schedule, sampler, steps).round()[start:]
    return _posterior(schedule, sampler, timesteps, timesteps - schedule.train_steps // steps, sampler.eta)


def ddpm(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """Ancestral sampling with the small variance (arXiv 2006.11239, eq. 6 and 7), which is DDIM with eta 1."""
    timesteps = _spaced(schedule, sampler, steps).round()[start:]
    return _posterior(schedule, sampler, timesteps, np.append(timesteps[1:], -1), 1.0)


def _posterior(schedule: Schedule, sampler: Sampler, timesteps: Array, previous: Array, eta: float) -> Table:
    bar = alphas_cumprod(schedule, sampler.zero_snr)
    now, before = bar[timesteps.astype(int)], _before(bar, previous, sampler)
    s = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
    a = np.sqrt(np.maximum(1 - before - s**2, 0)) / np.sqrt(1 - now)
    b = np.sqrt(before) - a * np.sqrt(now)
    return _preserving(schedule, timesteps, now, a, b[:, None], s, history="sample")


def _before(bar: Array, previous: Array, sampler: Sampler) -> Array:
    final = 1.0 if sampler.final_sigma == "zero" else bar[0]
    return np.where(previous < 0, final, bar[previous.astype(int)])


_ADAMS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def pndm(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """PLMS: pseudo linear multistep (arXiv 2202.09778, eq. 9) without Runge-Kutta steps.

    The second timestep comes twice: row 1 redoes row 0's step with the mean of both predictions and is no history.
    Image-to-image counts its rows from where it starts, as diffusers does: its row 1 redoes whatever came first.
    """
    if schedule.prediction == "sample":
        raise RequestError("the sampler 'pndm' knows no prediction 'sample'; choose another sampler")
    stride = schedule.train_steps // steps
    spaced = _spaced(schedule, sampler, steps).round()
    timesteps = np.append(spaced[:2], spaced[1:])[start:]
    origin, target = timesteps.copy(), timesteps - stride
    if len(timesteps) > 1:
        origin[1], target[1] = timesteps[1] + stride, timesteps[1]
    bar = alphas_cumprod(schedule)
    now, then = bar[origin.astype(int)], _before(bar, target, sampler)
    x = np.sqrt(then / now)
    eps = (now - then) / (now * np.sqrt(1 - then) + np.sqrt(now * (1 - now) * then))
    if schedule.prediction == "v_prediction":
        x, eps = x + eps * np.sqrt(1 - now), eps * np.sqrt(now)
    a, b = x.copy(), np.zeros((len(x), 5))
    for i in range(len(x)):
        used = [k for k in range(i + 1) if i - k != 1][:4]
        b[i, used] = eps[i] * np.array(_ADAMS[len(used)])
    if len(x) > 1:  # x_0 is (x_1 - eps_0 h_0) / x_0's factor
        a[1] = x[1] / x[0]
        b[1, :2] = eps[1] / 2, eps[1] / 2 - a[1] * eps[0]
    return _preserving(schedule, timesteps, bar[timesteps.astype(int)], a, b, history=schedule.prediction)


def lcm(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """Multistep consistency sampling (arXiv 2310.04378, algorithm 3; skip, out: arXiv 2303.01469, appendix C)."""
    original = sampler.original_steps
    if original > schedule.train_steps:
        raise RequestError(f"original_steps is {original}, wanted 1 to {schedule.train_steps}")
    if steps > original:
        raise RequestError(f"steps is {steps}, wanted 1 to {original}, as the LCM was trained")
    teacher = (np.arange(original, 0, -1) * (schedule.train_steps // original) - 1).astype(float)
    timesteps = teacher[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)][start:]
    bar = alphas_cumprod(schedule, sampler.zero_snr)[timesteps.astype(int)]
    alpha, sigma = np.sqrt(np.append(bar[1:], 1)), np.sqrt(1 - np.append(bar[1:], 1))
    scaled = timesteps * sampler.timestep_scaling
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    return _preserving(schedule, timesteps, bar, alpha * skip, (alpha * out)[:, None], sigma, history="sample")


# ---------------------------------------------------------------- samplers on sigma' = sigma / alpha


def euler(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """Euler's method (arXiv 2206.00364, algorithm 1 without lines 6 to 8)."""
    timesteps, sigmas = _levels(schedule, sampler, steps, multistep=False)
    b = np.diff(sigmas)[start:, None]
    return _exploding(schedule, sampler, timesteps[start:], sigmas[start:-1], sigmas.max(), b)


def euler_ancestral(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """Euler's method to a lower level, then fresh noise up to the wanted one (k-diffusion)."""
    timesteps, sigmas = _levels(schedule, sampler, steps, multistep=False)
    now, then = sigmas[start:-1], sigmas[start + 1 :]
    up = then * np.sqrt(1 - (then / now) ** 2)
    b = (then**2 / now - now)[:, None]
    return _exploding(schedule, sampler, timesteps[start:], now, sigmas.max(), b, up)


def heun(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """Heun's method (arXiv 2206.00364, algorithm 1): Euler's step, then half of it traded for the new slope."""
    timesteps, sigmas = _levels(schedule, sampler, steps, multistep=False)
    delta = np.diff(sigmas)[start:]
    pairs = np.stack([np.stack([delta, 0 * delta], 1), np.stack([delta, -delta], 1) / 2], 1)  # (steps, 2 rows, 2)
    b = pairs.reshape(-1, 2)[:-1]
    visited = np.arange(2 * start + 1, 2 * steps) // 2  # every timestep twice, but the first
    return _exploding(schedule, sampler, timesteps[visited], sigmas[visited], sigmas.max(), b)


def lms(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """Linear multistep of order 4 (k-diffusion). Image-to-image starts with the weights of a full history."""
    timesteps, sigmas = _levels(schedule, sampler, steps, multistep=False)
    b = np.zeros((steps - start, 4))
    for i in range(start, steps):
        weights = _adams(sigmas[max(i - 3, 0) : i + 1][::-1], sigmas[i + 1], np.ones_like)
        b[i - start, : i - start + 1] = weights[: i - start + 1]
    return _exploding(schedule, sampler, timesteps[start:], sigmas[start:-1], sigmas.max(), b)


def _adams(nodes: Array, end: float, density: Callable[[Array], Array]) -> Array:
    """Integrals over [nodes[0], end] of density(u) times each Lagrange polynomial of `nodes`, by Gauss' rule."""
    points, weights = np.polynomial.legendre.leggauss(16)
    half = (end - nodes[0]) / 2
    u = nodes[0] + half * (points + 1)
    basis = [
        np.prod([(u - other) / (node - other) for other in np.delete(nodes, k)], axis=0) for k, node in enumerate(nodes)
    ]
    return np.array([half * np.sum(weights * density(u) * line) for line in basis])


# ---------------------------------------------------------------- multistep samplers in log-SNR lambda = -log sigma'


def _order(sampler: Sampler, i: int, steps: int, start: int) -> int:
    """The order of step i under DPM-Solver++'s rules."""
    short = sampler.lower_order_final and steps < 15
    to_zero = sampler.final_sigma == "zero" and sampler.kind != "deis"
    if i == steps - 1 and (sampler.euler_at_final or short or to_zero):
        return 1
    most = 2 if i == steps - 2 and short else 3
    return min(sampler.solver_order, i - start + 1, most)


def dpmpp_2m(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """DPM-Solver++ of order 1 to 3 (arXiv 2211.01095; algorithm 2 is order 2), or its SDE form of order 1 or 2."""
    timesteps, sigmas = _levels(schedule, sampler, steps, multistep=True)
    alpha, lam = _alpha(sigmas), -np.log(sigmas)
    noisy = 2 if sampler.kind == "dpmpp_2m_sde" else 1
    ratio = sigmas[1:] / sigmas[:-1]  # exp(-h)
    weight = 1 - ratio**noisy
    b = np.zeros((steps, 3))
    m = np.eye(3)
    for i in range(start, steps):
        order = _order(sampler, i, steps, start)
        b[i] = weight[i] * m[0]
        if order == 1 or weight[i] == 0:  # the last step may be from sigma_min to sigma_min
            continue
        h, h0 = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        u = noisy * h
        slope = weight[i] / 2 if order == 2 and sampler.solver_type != "heun" else 1 - weight[i] / u
        d1 = (m[0] - m[1]) * h / h0
        if order == 3:
            h1 = lam[i - 1] - lam[i - 2]
            d2 = (d1 - (m[1] - m[2]) * h / h1) * h / (h0 + h1)
            d1 = d1 + d2 * h0 / h
            b[i] += (1 / 2 - (u - weight[i]) / u**2) * d2
        b[i] += slope * d1
    a = alpha[1:] / alpha[:-1] * ratio**noisy
    s = alpha[1:] * sigmas[1:] * np.sqrt(1 - ratio**2) * (noisy - 1)
    rows = slice(start, steps)
    b = alpha[1:, None] * b
    return _preserving(schedule, timesteps[rows], alpha[rows] ** 2, a[rows], b[rows], s[rows], history="sample")


def deis(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """DEIS with polynomials in log sigma' (arXiv 2204.13902). It ends at the first training timestep's level."""
    timesteps, sigmas = _levels(schedule, sampler, steps, multistep=True)
    alpha, logs = _alpha(sigmas), np.log(sigmas)
    b = np.zeros((steps, 3))
    for i in range(start, steps):
        order = _order(sampler, i, steps, start)
        b[i, :order] = alpha[i + 1] * _adams(logs[i - order + 1 : i + 1][::-1], logs[i + 1], np.exp)
    rows, a = slice(start, steps), alpha[1:] / alpha[:-1]
    return _preserving(schedule, timesteps[rows], alpha[rows] ** 2, a[rows], b[rows], history="epsilon")


def unipc(schedule: Schedule, sampler: Sampler, steps: int, start: int) -> Table:
    """UniPC on the clean sample (arXiv 2302.04867).

    Predictor and corrector share their factor on x, so that the corrected x_i is the predicted one plus a sum over the
    history: row i corrects step i - 1 with the new prediction and then predicts step i.
    """
    timesteps, sigmas = _levels(schedule, sampler, steps, multistep=True)
    alpha = _alpha(sigmas)
    a = alpha[1:] * sigmas[1:] / (alpha[:-1] * sigmas[:-1])
    m = np.eye(sampler.solver_order + 1)
    b = np.zeros((steps, len(m)))
    order = 0
    for i in range(start, steps):
        if i > start:  # m[k + 1] is what m[k] was in step i - 1
            predicted, corrected = _unipc_step(sampler, sigmas, i - 1, order, np.append(m[1:], m[:1], 0))
            b[i] = a[i] * (corrected - predicted)
        left = steps - i if sampler.lower_order_final else steps
        order = min(sampler.solver_order, left, i - start + 1)
        b[i] += _unipc_step(sampler, sigmas, i, order, m)[0]
    rows = slice(start, steps)
    return _preserving(schedule, timesteps[rows], alpha[rows] ** 2, a[rows], b[rows], history="sample")


def _unipc_step(sampler: Sampler, sigmas: Array, i: int, order: int, m: Array) -> tuple[Array, Array]:
    """What predictor and corrector add to a x in step i, as weights of the history; the new prediction is m[-1]."""
    alpha = float(_alpha(sigmas[i + 1]))
    first = alpha * (1 - sigmas[i + 1] / sigmas[i]) * m[0]
    if sigmas[i + 1] in (0, sigmas[i]):  # the last step, to no noise or to where it already is
        return first, first
    h = math.log(sigmas[i] / sigmas[i + 1])
    ratios = np.append(np.log(sigmas[i] / sigmas[i - order + 1 : i])[::-1] / h, 1.0)
    scale = -h if sampler.solver_type == "bh1" else math.expm1(-h)
    phi, right = math.expm1(-h) / -h - 1, []
    for k in range(1, order + 1):
        right.append(phi * math.factorial(k) / scale)
        phi = phi / -h - 1 / math.factorial(k + 1)
    left = np.stack([ratios**k for k in range(order)])
    slopes = np.stack([(m[k] - m[0]) / ratios[k - 1] for k in range(1, order)] + [m[-1] - m[0]])
    predictor = [1 / 2] if order == 2 else np.linalg.solve(left[:-1, :-1], right[:-1])
    corrector = [1 / 2] if order == 1 else np.linalg.solve(left, right)
    return first - alpha * scale * (predictor @ slopes[:-1]), first - alpha * scale * (corrector @ slopes)


SAMPLERS: dict[str, Callable[[Schedule, Sampler, int, int], Table]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "pndm": pndm,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "lms": lms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m,
    "unipc": unipc,
    "deis": deis,
    "lcm": lcm,
}
