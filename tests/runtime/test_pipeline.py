"""What a pipeline makes: against a loop written out in NumPy, against itself, and from many threads."""

from __future__ import annotations

import gc
import json
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundles
import msgspec
import numpy as np
import pytest
from PIL import Image

import mmrt
from mmrt.runtime import samplers
from mmrt.runtime.devices import cpu
from mmrt.runtime.events import Done, Step
from mmrt.runtime.noise import TorchCpu, TorchCuda
from mmrt.runtime.pipeline import Pipeline
from mmrt.runtime.request import resolve
from mmrt.runtime.schedule import Schedule
from mmrt.runtime.stages import Run

HEART = "a red heart"
SHAPE = (bundles.CHANNELS, 3, 4)
PICTURE = np.random.default_rng(3).integers(0, 256, (24, 32, 3)).astype(np.uint8)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(pixels(a), pixels(b))


def reference(
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
    rescale: float = 0.0,
    start: np.ndarray | None = None,
    skip: int = 0,
    generator: type[TorchCpu | TorchCuda] = TorchCpu,
) -> np.ndarray:
    """One picture's latents: the loop as DESIGN section 3 has it, in plain NumPy and float64."""
    schedule = msgspec.convert(bundles.SCHEDULE, Schedule)
    table = samplers.table(schedule, msgspec.convert(bundles.SAMPLERS[sampler], samplers.Sampler), steps, skip)
    noise = generator(seed)
    if start is None:
        x = table.initial * noise.normal(SHAPE)[None].astype(np.float64)
    else:
        posterior = noise.normal(SHAPE)[None]
        x = table.signal * bundles.encode_pixels(start[None], posterior) + table.noise * noise.normal(SHAPE)[None]
    negative, positive = bundles.encode_ids(bundles.ids("", HEART))
    history: list[np.ndarray] = []
    for row in table.rows:
        scaled, time = (row.scale * x).astype(np.float32), np.full(1, row.timestep, np.float32)
        v = bundles.denoise(scaled, time, positive[None]).astype(np.float64)
        if guidance > 1:
            u = bundles.denoise(scaled, time, negative[None]).astype(np.float64)
            c, v = v, u + guidance * (v - u)
            v = rescale * v * c.std(ddof=1) / v.std(ddof=1) + (1 - rescale) * v
        history.insert(0, row.p * x + row.q * v)
        x = row.a * x + sum(b * h for b, h in zip(row.b, history, strict=False))
        if row.s:
            x = x + row.s * noise.normal(SHAPE)[None]
    return x


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", bundles.SAMPLERS)
def test_latents_are_those_of_the_loop_written_out(sampler: str, guidance: float, pipeline: Pipeline) -> None:
    found = pipeline.arrays(prompt=HEART, sampler=sampler, guidance=guidance, steps=5, seed=9)
    assert_close(found["latents"], reference(sampler, 5, guidance, 9))


@pytest.mark.parametrize("sampler", bundles.SAMPLERS)
def test_image_to_image_starts_within_the_loop(sampler: str, pipeline: Pipeline) -> None:
    found = pipeline.arrays(prompt=HEART, image=PICTURE, strength=0.6, sampler=sampler, steps=5, seed=9)
    assert_close(found["latents"], reference(sampler, 5, 3.0, 9, start=PICTURE, skip=2))


def test_pixels_are_the_decoded_latents(pipeline: Pipeline) -> None:
    found = pipeline.arrays(prompt=HEART, seed=9)
    np.testing.assert_array_equal(found["pixels"], bundles.decode(found["latents"]))


def test_ddim_is_the_formula_of_its_paper(pipeline: Pipeline) -> None:
    found = pipeline.arrays(prompt=HEART, negative_prompt="blue", seed=2**40, steps=20, size="64x48")
    assert_close(found["latents"], bundles.ddim(HEART, "blue", 3.0, 20, 2**40, (6, 8)))


@pytest.mark.parametrize("rescale", [0.5, 1.0])
def test_guidance_rescale_is_the_formula_of_its_paper(rescale: float, pipeline: Pipeline) -> None:
    found = pipeline.arrays(prompt=HEART, guidance=9.0, guidance_rescale=rescale, steps=3, seed=9)
    assert_close(found["latents"], reference("ddim", 3, 9.0, 9, rescale=rescale))


def test_guidance_up_to_one_runs_one_row_and_ignores_the_negative_prompt(pipeline: Pipeline) -> None:
    plain = pipeline.arrays(prompt=HEART, guidance=1.0, seed=9)
    assert len(plain["prompt_ids"]) == 1
    for guidance in (0.0, 0.5, 1.0):
        again = pipeline.arrays(prompt=HEART, negative_prompt="a big blue car", guidance=guidance, seed=9)
        np.testing.assert_array_equal(again["latents"], plain["latents"])


def test_negative_prompt_matters_with_guidance(pipeline: Pipeline) -> None:
    assert not same(
        pipeline.generate(HEART, seed=9).image, pipeline.generate(HEART, negative_prompt="a big blue car", seed=9).image
    )


def test_conditions_have_a_row_for_each_row_of_the_batch_unconditional_first(pipeline: Pipeline) -> None:
    request = resolve(pipeline.manifest, {"prompt": ["red", "blue"], "num_images": 2, "seed": 1})
    run = Run(request)
    run.put("context", np.array([[0], [1], [2]]), np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    run.put("pixels", np.array([[3], [4]]), np.array([0, 0, 1, 1]))

    def spread(copies: int, each: int) -> list[list[int]]:
        found = run.spread(["context", "pixels", "timestep"], copies, each)
        return [found[name].ravel().tolist() for name in ("context", "pixels")]

    assert spread(2, 2) == [[0, 0, 0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 3, 3, 4, 4]]
    assert spread(1, 3) == [[1, 1, 1, 2, 2, 2], [3, 3, 3, 4, 4, 4]]


def test_a_graph_of_several_inputs_runs_on_their_distinct_combinations(pipeline: Pipeline) -> None:
    request = resolve(pipeline.manifest, {"prompt": ["red", "blue", "red", "red"], "seed": 1})
    run = Run(request)
    run.put("words", np.array([[0], [1]]), np.array([0, 1, 0, 0]))
    run.put("pixels", np.array([[3], [4]]), np.array([0, 0, 0, 1]))
    assert run.join(["words", "pixels"]).tolist() == [0, 1, 0, 2]
    assert run.arrays["words"].ravel().tolist() == [0, 1, 0]
    assert run.arrays["pixels"].ravel().tolist() == [3, 3, 4]


def test_a_text_is_encoded_once_however_often_it_is_wanted(pipeline: Pipeline) -> None:
    found = pipeline.arrays(prompt=["red", "", "red"], num_images=4, seed=1)
    np.testing.assert_array_equal(found["prompt_ids"], bundles.ids("", "red"))


# ---------------------------------------------------------------- batches and seeds


def test_result_i_is_that_of_seed_plus_i(pipeline: Pipeline) -> None:
    together = pipeline.generate(HEART, num_images=3, seed=2**32 - 1).images
    alone = [pipeline.generate(HEART, seed=2**32 - 1 + i).image for i in range(3)]
    assert [same(a, b) for a, b in zip(together, alone, strict=True)] == [True] * 3
    assert not same(together[0], together[1])


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m_sde"])
def test_each_prompt_has_its_images_in_turn(sampler: str, pipeline: Pipeline) -> None:
    together = pipeline.generate(["red", "big blue car"], num_images=2, seed=5, sampler=sampler).images
    alone = [
        pipeline.generate(prompt, seed=5 + i, sampler=sampler).image
        for i, prompt in enumerate(["red", "red", "big blue car", "big blue car"])
    ]
    assert [same(a, b) for a, b in zip(together, alone, strict=True)] == [True] * 4


def test_pictures_go_with_their_prompts(pipeline: Pipeline) -> None:
    other = 255 - PICTURE
    together = pipeline.generate(["red", "blue"], image=[PICTURE, other], seed=5).images
    assert same(together[0], pipeline.generate("red", image=PICTURE, seed=5).image)
    assert same(together[1], pipeline.generate("blue", image=other, seed=6).image)


def test_the_generator_is_chosen(pipeline: Pipeline) -> None:
    found = pipeline.arrays(prompt=HEART, guidance=1.0, steps=1, sampler="ddim", seed=9, generator="cuda")
    assert_close(found["latents"], reference("ddim", 1, 1.0, 9, generator=TorchCuda))


@pytest.mark.parametrize("size", ["8x8", "8x48", "256x16", (120, 88)])
def test_any_legal_size(size: Any, pipeline: Pipeline) -> None:
    result = pipeline.generate(HEART, size=size, seed=1)
    assert result.image.size == (tuple(map(int, size.split("x"))) if isinstance(size, str) else size)
    assert result.image.mode == "RGB"


def test_the_same_from_8_threads_as_from_one(pipeline: Pipeline) -> None:
    def make(index: int) -> bytes:
        names = list(bundles.SAMPLERS)
        more: dict[str, Any] = {"image": PICTURE} if index % 5 == 0 else {"size": ("32x24", "16x40")[index % 2]}
        prompt = ("a red heart", "big blue car", ["one", "two"])[index % 3]
        sampler = names[index % len(names)]
        result = pipeline.generate(prompt, sampler=sampler, steps=3 + index % 4, seed=index, **more)
        return b"".join(picture.tobytes() for picture in result.images)

    wanted = [make(index) for index in range(50)]
    found: dict[int, list[bytes]] = {}
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        order = np.random.default_rng(number).permutation(50)
        made = {index: make(int(index)) for index in order}
        found[number] = [made[index] for index in range(50)]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert [found[number] == wanted for number in range(8)] == [True] * 8


def test_a_graph_that_is_loaded_late_is_loaded_once_by_all_threads(handmade: Path) -> None:
    pipeline = mmrt.load(handmade, threads=1)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: pipeline.generate(HEART, image=PICTURE, seed=1).image, range(8)))
    assert all(same(results[0], each) for each in results)


# ---------------------------------------------------------------- streams


def test_stream_counts_the_steps_and_ends_with_the_result(pipeline: Pipeline) -> None:
    *steps, done = pipeline.stream(HEART, steps=5, seed=9)
    assert [(step.number, step.total) for step in steps if isinstance(step, Step)] == [(i, 5) for i in range(1, 6)]
    assert isinstance(done, Done)
    assert same(done.result.image, pipeline.generate(HEART, steps=5, seed=9).image)


def test_a_step_is_a_call_of_the_model(pipeline: Pipeline) -> None:
    *steps, _ = pipeline.stream(HEART, steps=5, sampler="heun")
    assert len(steps) == 9


def test_previews_have_the_size_of_the_results_and_end_near_them(pipeline: Pipeline) -> None:
    for event in pipeline.stream(["red", "blue"], num_images=2, steps=4, seed=9):
        if isinstance(event, Step):
            previews = event.preview()
            assert [preview.size for preview in previews] == [(32, 24)] * 4
        else:
            images = event.result.images
    errors = [
        np.abs(pixels(preview).astype(int) - pixels(image)).mean()
        for preview, image in zip(previews, images, strict=True)
    ]
    assert max(errors) < 40


def test_preview_is_the_map_of_the_denoised_latents(pipeline: Pipeline) -> None:
    step = next(iter(pipeline.stream(HEART, guidance=1.0, steps=4, seed=9, size="8x8")))
    assert isinstance(step, Step)
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[750]
    x = TorchCpu(9).normal((4, 1, 1))[None]
    noise = bundles.denoise(x, np.full(1, 750, np.float32), bundles.encode_ids(bundles.ids(HEART)))
    clean = (x - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
    np.testing.assert_allclose(pixels(step.preview()[0])[0, 0].astype(int), bundles.decode(clean)[0, 0, 0], atol=1)


def test_looking_at_previews_changes_nothing(pipeline: Pipeline) -> None:
    for event in pipeline.stream(HEART, seed=9, sampler="dpmpp_2m"):
        if isinstance(event, Step):
            event.preview()
        else:
            assert same(event.result.image, pipeline.generate(HEART, seed=9, sampler="dpmpp_2m").image)


def test_a_bundle_without_a_map_has_no_previews(damaged: Path) -> None:
    with bundles.edited(damaged) as document:
        del document["program"][2]["preview"]
    step = next(iter(mmrt.load(damaged).stream(HEART)))
    assert isinstance(step, Step)
    with pytest.raises(mmrt.RequestError, match="no preview map"):
        step.preview()


def test_nothing_runs_before_the_first_event_is_asked_for(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "_run", lambda *_: pytest.fail("it runs"))
    pipeline.stream(HEART)


def test_leaving_the_loop_cancels_and_frees(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[int, weakref.ref[np.ndarray]] = {}
    step = cpu.guide_and_step

    def watched(prediction: np.ndarray, latents: np.ndarray, history: np.ndarray, *others: Any) -> None:
        used.update({id(array): weakref.ref(array) for array in (latents, history)})
        step(prediction, latents, history, *others)

    monkeypatch.setattr(cpu, "guide_and_step", watched)
    for event in pipeline.stream(HEART, steps=100):
        if isinstance(event, Step) and event.number == 3:
            break
    del event
    gc.collect()
    assert [ref() for ref in used.values()] == [None] * 2  # all steps have the same two


def test_two_streams_do_not_meet(pipeline: Pipeline) -> None:
    def follow(seed: int) -> Iterator[Any]:
        return iter(pipeline.stream(HEART, seed=seed, sampler="euler_ancestral"))

    *_, (a, b) = zip(follow(1), follow(2), strict=True)
    assert same(a.result.image, pipeline.generate(HEART, seed=1, sampler="euler_ancestral").image)
    assert same(b.result.image, pipeline.generate(HEART, seed=2, sampler="euler_ancestral").image)


# ---------------------------------------------------------------- what goes with a result


def test_provenance_makes_each_picture_again(pipeline: Pipeline) -> None:
    result = pipeline.generate(
        ["red", "blue car"], "tree", num_images=2, seed=5, steps=3, sampler="euler_ancestral", size="16x40", guidance=2
    )
    for picture, origin in zip(result.images, result.provenance, strict=True):
        assert origin["bundle"] == {"name": "handmade", "sha256": pipeline.bundle.sha256}
        assert origin["mmrt"] == mmrt.__version__
        request = json.loads(json.dumps(origin["request"]))
        assert same(pipeline.generate(**request).image, picture)


def test_provenance_names_a_picture_by_its_hash(pipeline: Pipeline) -> None:
    request = pipeline.generate(HEART, image=PICTURE).provenance[0]["request"]
    assert request["image"].startswith("sha256:")


def test_a_seed_that_was_drawn_is_in_the_provenance(pipeline: Pipeline) -> None:
    result = pipeline.generate(HEART)
    assert same(pipeline.generate(**result.provenance[0]["request"]).image, result.image)


def test_timings_are_seconds_of_the_whole_and_of_each_graph(pipeline: Pipeline) -> None:
    timings = pipeline.generate(HEART).timings
    assert timings["graphs"].keys() == {"text_encoder", "denoiser", "decoder"}
    assert 0 < sum(timings["graphs"].values()) < timings["total"]


def test_describe_says_how_each_graph_runs(pipeline: Pipeline) -> None:
    assert pipeline.describe().engines == dict.fromkeys(bundles.manifest()["graphs"], "onnx fp32 on cpu")


# ---------------------------------------------------------------- texts


def test_a_long_prompt_is_cut_with_a_warning_that_says_what_was_cut(pipeline: Pipeline) -> None:
    with pytest.warns(mmrt.RequestWarning, match="longer than 8 tokens and was cut; left out: 'big house one two'"):
        cut = pipeline.arrays(prompt="a red heart a blue car big house one two", seed=1)
    np.testing.assert_array_equal(cut["prompt_ids"][1], bundles.ids("a red heart a blue car")[0])


def test_a_prompt_that_just_fits_is_not_warned_of(pipeline: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.generate("a red heart a blue car")


def test_a_text_of_nothing_but_special_tokens_can_be_cut(damaged: Path) -> None:
    with bundles.edited(damaged) as document:
        document["inputs"]["prompt"]["tokenize"]["prompt_ids"]["length"] = 2
        document["graphs"]["text_encoder"]["inputs"]["prompt_ids"]["shape"][1] = "length"
        document["graphs"]["text_encoder"]["outputs"]["context"]["shape"][1] = "length"
        document["graphs"]["denoiser"]["inputs"]["context"]["shape"][1] = "length"

    def free_length(model: Any) -> None:
        for value in (*model.graph.input, *model.graph.output):
            if value.name in ("prompt_ids", "context"):
                value.type.tensor_type.shape.dim[1].dim_param = "length"

    bundles.regraph(damaged, "text_encoder", free_length)
    bundles.regraph(damaged, "denoiser", free_length)
    with pytest.warns(mmrt.RequestWarning, match="left out: 'red'"):
        mmrt.load(damaged).generate("red")


def test_texts_in_any_script_are_taken(pipeline: Pipeline) -> None:
    for text in ("红心", "❤️", "e\u0301", "", " ", "\n", "\x00", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"):
        pipeline.generate(text)
