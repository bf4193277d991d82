"""Sampler tables against what must hold for any correct solver, and their borders."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrt.runtime.errors import RequestError
from mmrt.runtime.samplers import SAMPLERS, TAKES, Row, Sampler, Table, table
from mmrt.runtime.schedule import Prediction, Schedule, alphas_cumprod

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FRESH_NOISE = {"ddpm", "euler_ancestral", "dpmpp_2m_sde", "lcm"}
KINDS = sorted(SAMPLERS)
PREDICTIONS = get_args(Prediction)


def stable_diffusion(prediction: Prediction = "epsilon") -> Schedule:
    return Schedule(prediction=prediction, **STABLE_DIFFUSION)


def run(found: Table, model: Callable[[Row, float], float], x: float, z: float = 0.0) -> list[float]:
    """All states of the documented update, the model being given (row, x) in the sampler's own scale."""
    states, history = [x], []
    for row in found.rows:
        history.insert(0, row.p * x + row.q * model(row, x))
        x = row.a * x + sum(weight * past for weight, past in zip(row.b, history, strict=False)) + row.s * z
        states.append(x)
    return states


def predict(prediction: Prediction, row: Row, x: float, clean: float) -> float:
    """What a model that takes the clean sample to be `clean` says at x."""
    alpha, sigma, x = row.signal * row.scale, row.noise * row.scale, row.scale * x
    noise = (x - alpha * clean) / sigma
    return {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "start"), [(1, 0), (2, 0), (5, 0), (20, 0), (5, 2), (20, 13), (20, 19)])
def test_a_model_that_knows_the_only_picture_leads_to_it(
    kind: str, prediction: Prediction, steps: int, start: int
) -> None:
    """The velocity is constant along the way, so that every method of any order is exact."""
    if (kind == "pndm" and (start or prediction != "epsilon")) or (kind == "lms" and start):
        pytest.skip("diffusers' own PNDM and LMS are not exact here")
    found = table(stable_diffusion(prediction), Sampler(kind=kind), steps, start)
    end = run(found, lambda row, x: predict(prediction, row, x, 0.7), found.signal * 0.7 + found.noise * 1.3, z=0.4)[-1]
    if kind == "deis":  # it stops at the first training timestep
        first = alphas_cumprod(stable_diffusion())[0]
        assert end == pytest.approx(math.sqrt(first) * 0.7 + math.sqrt(1 - first) * 1.3, abs=1e-9)
    else:
        assert end == pytest.approx(0.7, abs=1e-3 if kind == "lcm" else 1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_denoised_and_noise_levels_agree_with_the_state(kind: str, prediction: Prediction) -> None:
    if (kind, prediction) == ("pndm", "sample"):
        pytest.skip("refused")
    for row in table(stable_diffusion(prediction), Sampler(kind=kind), 10).rows:
        x = row.signal * 0.7 + row.noise * -1.3
        v = predict(prediction, row, x, 0.7)
        assert row.denoised[0] * x + row.denoised[1] * v == pytest.approx(0.7, abs=1e-9)
        assert (row.scale * row.signal) ** 2 + (row.scale * row.noise) ** 2 == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"kind": "ddim"}, 1),
        ({"kind": "euler"}, 1),
        ({"kind": "euler", "sigmas": "karras"}, 1),
        ({"kind": "euler", "sigmas": "exponential"}, 1),
        ({"kind": "heun"}, 2),
        ({"kind": "heun", "sigmas": "karras"}, 2),
        ({"kind": "lms", "sigmas": "karras"}, 3.2),  # of order 4 after a start of order 1
        ({"kind": "dpmpp_2m", "sigmas": "karras", "solver_order": 1}, 1),
        ({"kind": "dpmpp_2m", "sigmas": "karras"}, 2),
        ({"kind": "dpmpp_2m", "sigmas": "karras", "solver_type": "heun"}, 2),
        ({"kind": "deis", "sigmas": "karras", "solver_order": 1}, 1),
        ({"kind": "deis", "sigmas": "karras"}, 2),
        ({"kind": "unipc", "sigmas": "karras", "solver_order": 1}, 2),  # the corrector adds one
        ({"kind": "unipc", "sigmas": "karras"}, 3),
        ({"kind": "unipc", "sigmas": "karras", "solver_type": "bh1"}, 3),
        ({"kind": "unipc", "sigmas": "karras", "solver_order": 3}, 4.2),
    ],
)
def test_half_the_step_gives_the_error_of_its_order(options: dict[str, Any], order: float) -> None:
    """For data N(0, 1) the flow is known: x over the state's standard deviation stays constant."""

    def error(steps: int) -> float:
        found = table(stable_diffusion("sample"), Sampler(**options), steps)
        spread = [math.hypot(row.signal, row.noise) for row in found.rows]
        states = run(
            found, lambda row, x: row.signal * x / (row.signal**2 + row.noise**2), x=spread[0]
        )  # in either scale
        return abs(states[-2] / spread[-1] - 1)

    assert math.log2(error(50) / error(100)) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("steps", "start"), [(1, 0), (2, 1), (7, 0), (20, 6), (50, 0)])
def test_structure(kind: str, spacing: str, steps: int, start: int) -> None:
    options = {"spacing": spacing} if "spacing" in TAKES[kind] else {}
    found = table(stable_diffusion(), Sampler(kind=kind, **options), steps, start)
    count = {"heun": 2 * (steps - start) - 1, "pndm": steps - start + (steps > 1)}.get(kind, steps - start)
    assert len(found.rows) == count
    assert len({len(row.b) for row in found.rows}) == 1
    assert all(weight == 0 for i, row in enumerate(found.rows) for weight in row.b[i + 1 :])
    timesteps = [row.timestep for row in found.rows]
    assert timesteps == sorted(timesteps, reverse=True)
    assert all(0 <= timestep <= 999 for timestep in timesteps)
    drawn = [row.s != 0 for row in found.rows]
    assert drawn == ([True] * (count - 1) + [False] if kind in FRESH_NOISE else [False] * count)


def test_start_leaves_out_rows_of_samplers_without_a_history() -> None:
    for kind in KINDS:
        whole, rest = (
            table(stable_diffusion(), Sampler(kind=kind), 10),
            table(stable_diffusion(), Sampler(kind=kind), 10, 4),
        )
        assert whole.initial == rest.initial
        if len(whole.rows[0].b) == 1:
            assert whole.rows[4:] == rest.rows


def test_known_noise_levels() -> None:
    bar = alphas_cumprod(stable_diffusion())
    assert bar[[0, -1]] == pytest.approx([0.99915, 0.00466010], rel=1e-5)
    assert table(stable_diffusion(), Sampler(kind="euler", spacing="linspace"), 20).initial == pytest.approx(
        14.6146, 1e-5
    )
    leading = table(stable_diffusion(), Sampler(kind="euler"), 20)
    assert leading.initial == pytest.approx(math.hypot(leading.noise, 1))
    cosine = alphas_cumprod(Schedule(prediction="epsilon", beta_schedule="squaredcos_cap_v2"))
    assert cosine[499] == pytest.approx(math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2, rel=1e-3)
    listed = Schedule(prediction="epsilon", train_steps=3, betas=(0.5, 0.5, 0.5))
    assert alphas_cumprod(listed).tolist() == [0.5, 0.25, 0.125]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "zero_snr" in TAKES[kind]])
def test_zero_terminal_snr_starts_at_pure_noise(kind: str) -> None:
    options = {"spacing": "trailing"} if "spacing" in TAKES[kind] else {}
    found = table(stable_diffusion("v_prediction"), Sampler(kind=kind, zero_snr=True, **options), 10)
    assert found.rows[0].timestep == 999
    assert found.rows[0].scale * found.signal == pytest.approx(0, abs=3e-4)
    assert alphas_cumprod(stable_diffusion(), zero_snr=True)[-1] == 0


def test_every_row_of_trailing_spacing_is_a_training_timestep() -> None:
    """61 steps make numpy's arange one too long, and diffusers then asks the model for timestep -1."""
    for steps in range(1, 1001):
        rows = table(stable_diffusion(), Sampler(kind="euler", spacing="trailing"), steps).rows
        assert len(rows) == steps
        assert rows[-1].timestep >= 0


@pytest.mark.parametrize(
    ("sampler", "steps", "start", "message"),
    [
        (Sampler(kind="ddim"), 0, 0, "steps is 0, wanted 1 to 1000"),
        (Sampler(kind="ddim"), 1001, 0, "steps is 1001, wanted 1 to 1000"),
        (Sampler(kind="ddim"), 10, 10, "start is 10, wanted 0 to 9"),
        (Sampler(kind="ddim"), 10, -1, "start is -1"),
        (
            Sampler(kind="ddim", steps_offset=1),
            1000,
            0,
            "steps is 1000, too many for leading spacing with steps_offset 1",
        ),
        (Sampler(kind="lcm"), 51, 0, "steps is 51, wanted 1 to 50"),
        (Sampler(kind="lcm", original_steps=2000), 4, 0, "original_steps is 2000"),
        (Sampler(kind="ddim", zero_snr=True, spacing="trailing"), 10, 0, "at zero terminal SNR"),
        (Sampler(kind="dpmpp_2m"), 1000, 0, "steps is 1000, too many for leading spacing"),
    ],
)
def test_a_request_that_cannot_be_done_is_refused(sampler: Sampler, steps: int, start: int, message: str) -> None:
    with pytest.raises(RequestError) as error:
        table(stable_diffusion(), sampler, steps, start)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_pndm_refuses_sample_prediction() -> None:
    with pytest.raises(RequestError, match="knows no prediction 'sample'"):
        table(stable_diffusion("sample"), Sampler(kind="pndm"), 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magic"}, "kind is 'magic', wanted one of ddim"),
        ({"kind": "ddim", "spacing": "wide"}, "spacing is 'wide', wanted one of leading"),
        ({"kind": "pndm", "zero_snr": True}, "zero_snr is True, wanted False: the sampler 'pndm' does not know it"),
        ({"kind": "dpmpp_2m", "solver_order": 4}, "solver_order is 4, wanted 1 to 3"),
        ({"kind": "dpmpp_2m_sde", "solver_order": 3}, "solver_order is 3, wanted 1 to 2"),
        ({"kind": "ddim", "eta": math.nan}, "eta is nan, wanted 0 to 1"),
        ({"kind": "ddim", "steps_offset": -1}, "steps_offset is -1"),
        ({"kind": "lcm", "timestep_scaling": 0.0}, "timestep_scaling is 0.0"),
        ({"kind": "lcm", "original_steps": 0}, "original_steps is 0"),
    ],
)
def test_sampler_names_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="wanted") as error:
        Sampler(**options)
    assert message in str(error.value)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(options), type=Sampler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "velocity"}, "prediction is 'velocity', wanted one of epsilon"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid', wanted one of linear"),
        ({"beta_start": 0.0}, "beta_start is 0.0"),
        ({"beta_end": 1.0}, "beta_end is 1.0"),
        ({"train_steps": 0}, "train_steps is 0"),
        ({"train_steps": 10**9}, "train_steps is 1000000000"),
        ({"train_steps": 3, "betas": (0.1, 0.2)}, "len(betas) is 2, wanted 0 or 3"),
        ({"train_steps": 2, "betas": (0.1, math.nan)}, "betas[1] is nan"),
    ],
)
def test_schedule_names_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="wanted") as error:
        Schedule(**{"prediction": "epsilon"} | options)
    assert message in str(error.value)


def test_manifest_form() -> None:
    sampler = Sampler(kind="dpmpp_2m", sigmas="karras", spacing="leading")
    assert msgspec.json.encode(sampler) == b'{"kind":"dpmpp_2m","sigmas":"karras"}'
    assert msgspec.json.decode(b'{"kind":"dpmpp_2m","sigmas":"karras"}', type=Sampler) == sampler
    with pytest.raises(msgspec.ValidationError, match="unknown field `order`"):
        msgspec.json.decode(b'{"kind":"ddim","order":3}', type=Sampler)


def test_one_list_of_kinds() -> None:
    field = next(field for field in msgspec.structs.fields(Sampler) if field.name == "kind")
    assert set(get_args(field.type)) == SAMPLERS.keys() == TAKES.keys()
    assert set().union(*TAKES.values()) == set(Sampler.__struct_fields__)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_legal_choice_gives_finite_rows_or_a_refusal(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    values: dict[str, st.SearchStrategy[Any]] = {
        "spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "steps_offset": st.integers(0, 2),
        "zero_snr": st.booleans(),
        "final_sigma": st.sampled_from(["zero", "sigma_min"]),
        "sigmas": st.sampled_from(["schedule", "karras", "exponential"]),
        "eta": st.floats(0, 1),
        "solver_order": st.integers(1, 2 if kind == "dpmpp_2m_sde" else 3),
        "solver_type": st.sampled_from(["midpoint", "heun", "bh1", "bh2"]),
        "lower_order_final": st.booleans(),
        "euler_at_final": st.booleans(),
        "original_steps": st.integers(1, 100),
        "timestep_scaling": st.floats(0.1, 20),
    }
    options = {name: data.draw(value) for name, value in values.items() if name in TAKES[kind]}
    prediction = data.draw(st.sampled_from(PREDICTIONS))
    steps = data.draw(st.integers(1, 60))
    start = data.draw(st.integers(0, steps - 1))
    try:
        found = table(Schedule(prediction=prediction, train_steps=100), Sampler(kind=kind, **options), steps, start)
    except RequestError:
        return
    numbers = [value for row in found.rows for value in np.hstack([np.ravel(field) for field in vars(row).values()])]
    assert np.isfinite(numbers).all()
    assert found.initial > 0
