"""From a checkpoint to a bundle, whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
from checkpoints import SD1, export_half, graphs_of, save_checkpoint

import mmrt
from mmrt.export.exporter import Progress, export
from mmrt.export.families.stable_diffusion import GuidedDenoiser
from mmrt.runtime import manifest as m
from mmrt.runtime import profiles
from mmrt.runtime.bundle import Bundle
from mmrt.runtime.engines import builder
from mmrt.runtime.engines.nvidia import Library
from mmrt.runtime.receipt import read_receipt, replay


@pytest.fixture(params=["sd1", "sd2"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Both bundles, opened."""
    return Bundle(request.getfixturevalue(f"{request.param}_bundle"))


def test_the_manifest_says_what_the_checkpoint_is(bundle: Bundle) -> None:
    manifest = bundle.manifest
    second = manifest.name == "sd2"
    assert manifest.task == "text-to-image"
    assert manifest.inputs["size"] == m.Size(
        default=(48, 48) if second else (64, 64), multiple=4 if second else 8, max=4096
    )
    assert list(manifest.graphs) == ["text_encoder", "image_encoder", "denoiser", "decoder"]
    diffuse = manifest.program[2]
    assert isinstance(diffuse, m.Diffuse)
    assert diffuse.schedule.prediction == ("v_prediction" if second else "epsilon")
    sampler = manifest.inputs["sampler"]
    assert isinstance(sampler, m.Choice)
    assert sampler.default == ("ddim" if second else "pndm")
    assert {"ddim", "pndm", "euler", "dpmpp_2m"} <= set(sampler.choices)
    assert manifest.source.versions.keys() >= {"torch", "diffusers", "mmrt"}
    assert len(manifest.source.checkpoint) == 3


def test_free_dimensions_are_named(bundle: Bundle) -> None:
    width = 24 if bundle.manifest.name == "sd2" else 16
    graph = bundle.manifest.graphs["denoiser"]
    latents = m.Array(dtype="float32", shape=("batch", 4, "latent_height", "latent_width"))
    assert graph.inputs == {
        "latents": latents,
        "timestep": m.Array(dtype="float32", shape=("batch",)),
        "context": m.Array(dtype="float32", shape=("batch", 16, width)),
    }
    assert graph.outputs == {"prediction": latents}
    assert bundle.manifest.graphs["decoder"].outputs == {
        "pixels": m.Array(dtype="uint8", shape=("batch", "height", "width", 3))
    }


def test_the_receipt_holds_what_was_measured(bundle: Bundle) -> None:
    receipt = read_receipt(bundle)
    assert receipt.source.startswith("diffusers ")
    assert {case.name for case in receipt.cases} == {"guided", "unguided", "negative", "image"}
    assert len(receipt.checks) > 15
    assert all(check.passed for check in receipt.checks)
    card = (bundle.path / "README.md").read_text(encoding="utf-8")
    assert all(check.what in card for check in receipt.checks)
    with np.load(bundle.path / "golden.npz", allow_pickle=False) as golden:
        assert golden["run/guided/out/pixels"].dtype == np.uint8
        assert golden["run/image/in/image"].shape == golden["run/image/out/pixels"].shape


def test_it_makes_the_pictures_of_diffusers(sd1_bundle: Path, sd1_checkpoint: Path) -> None:
    """At a size that no golden case has, and whose latents are odd."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(sd1_checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    (wanted,) = pipeline(
        "a green tree", width=40, height=56, num_inference_steps=4, generator=torch.Generator().manual_seed(11)
    ).images
    found = mmrt.load(sd1_bundle).generate("a green tree", size="40x56", steps=4, seed=11).image
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(wanted))
    assert difference.max() <= 1


@pytest.fixture
def quick(sd1_bundle: Path) -> Iterator[None]:
    """An export without torch's slow part: graphs are taken from the bundle that there is."""
    with graphs_of(sd1_bundle):
        yield


@pytest.mark.usefixtures("quick")
def test_progress_says_each_step_twice(sd1_checkpoint: Path, tmp_path: Path) -> None:
    events = list(export(sd1_checkpoint, tmp_path / "x.mmrt"))
    assert [event.stage for event in events[::2]] == ["load", "reference", *["graph"] * 4, "verify"]
    for begin, end in zip(events[::2], events[1::2], strict=True):
        assert (begin.stage, begin.name, begin.seconds) == (end.stage, end.name, None)
        assert end.seconds is not None
    assert str(Progress("graph", "decoder", 1.25)) == "makes the graph decoder: 1.2 s"
    Bundle(tmp_path / "x.mmrt")


@pytest.mark.usefixtures("quick")
def test_a_bundle_that_fails_its_receipts_is_not_written(
    tmp_path: Path,
) -> None:
    """Here the graphs are right, but of other weights than the checkpoint's."""
    folder = save_checkpoint(tmp_path / "other", **SD1, seed=5)
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(mmrt.ExportError, match=r"does not give what the source model gives: text_encoder 0: context"):
        list(export(folder, output / "x.mmrt"))
    assert list(output.iterdir()) == []


def test_leaving_the_loop_undoes_all(sd1_checkpoint: Path, tmp_path: Path) -> None:
    with contextlib.closing(export(sd1_checkpoint, tmp_path / "x.mmrt")) as steps:  # type: ignore[type-var]
        next(steps)
        assert list(tmp_path.iterdir()) != []
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_there_is_not_is_refused_at_once(sd1_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(mmrt.ExportError, match="precision is 'int8', supported are fp32, fp16, bf16"):
        export(sd1_checkpoint, tmp_path / "x.mmrt", precision="fp32,int8")


# ---------------------------------------------------------------- in fp16 and bf16


@pytest.fixture(scope="module")
def half_bundle(sd1_checkpoint: Path, sd1_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("half") / "sd1.mmrt"
    return export_half(sd1_checkpoint, sd1_bundle, output, "bf16, fp16, fp32")


def test_every_graph_is_there_in_fp16_and_bf16_too(half_bundle: Path) -> None:
    manifest = Bundle(half_bundle).manifest
    for name, graph in manifest.graphs.items():
        assert [variant.precision for variant in graph.variants] == ["fp32", "fp16", "bf16"]
        whole, *halves = ((half_bundle / variant.file).stat().st_size for variant in graph.variants)
        assert max(halves) < 0.75 * whole, name
    for variant, dtype in zip(manifest.graphs["denoiser"].variants[1:], ("float16", "bfloat16"), strict=True):
        assert variant.dtypes == {"context": dtype}
        assert {island.op for island in variant.islands} >= {"Sin", "Cos"}
        assert {island.reason for island in variant.islands} <= {"rounding", "accumulation", "between"}
    assert sorted(path.name for path in (half_bundle / "graphs").iterdir()) == sorted(
        f"{name}.{precision}.onnx" for name in manifest.graphs for precision in ("fp32", "fp16", "bf16")
    )


def test_its_receipt_has_all_precisions_and_how_a_gpu_rounds(half_bundle: Path) -> None:
    checks = read_receipt(Bundle(half_bundle)).checks
    assert all(check.passed for check in checks)
    plain = [check.what for check in checks if check.precision == "fp32"]
    rounded = [f"{what}, every step rounded" for what in plain]
    assert [check.what for check in checks if check.precision == "fp16"] == [*plain, *rounded]
    assert [check.what for check in checks if check.precision == "bf16"] == rounded
    half, brain = (check.relative_error or 0 for check in checks if check.what == "guided: latents, every step rounded")
    assert 1e-4 < half < 2e-2  # it was rounded indeed
    assert 4 < brain / half < 16  # to three bits less
    card = (half_bundle / "README.md").read_text(encoding="utf-8")
    assert "| denoiser | fp16 | onnx |" in card
    assert "| bf16 | node_sin | Sin | accumulation | -" in card


def test_no_cpu_runs_bf16_and_that_is_said(half_bundle: Path) -> None:
    with pytest.raises(mmrt.EngineError, match="precision is 'bf16', in which ONNX Runtime has no operators on a CPU"):
        mmrt.load(half_bundle, device="cpu", precision="bf16")


def test_in_bf16_a_denoiser_becomes_an_engine(half_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle, library = Bundle(half_bundle), Library("tensorrt-rtx")
    spec = bundle.manifest.graphs["denoiser"]
    variant = spec.variants[-1]
    wanted = m.Build(
        source=bundle.digest(variant.file),
        version=library.version,
        capabilities=builder.CAPABILITIES,
        profiles=profiles.profiles(bundle.manifest)["denoiser"],
    )
    file = bundle.onnx_file(variant.file)
    for _ in builder.build(library, "denoiser", spec.of(variant), file, wanted, tmp_path / "engine"):
        pass
    assert (tmp_path / "engine").stat().st_size > 10_000


def test_a_cpu_takes_fp32_unless_it_is_told(half_bundle: Path) -> None:
    whole, half = mmrt.load(half_bundle), mmrt.load(half_bundle, precision="fp16")
    assert set(whole.describe().engines.values()) == {"onnx fp32 on cpu"}
    assert set(half.describe().engines.values()) == {"onnx fp16 on cpu"}
    pictures = [np.asarray(each.generate("a green tree", steps=4, seed=3).image, float) for each in (whole, half)]
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 0.5
    checks = list(replay(half))
    assert all(check.passed for check in checks)
    assert {check.precision for check in checks} == {"fp16"}
    assert min(check.psnr for check in checks if check.psnr is not None) > 35


@pytest.mark.parametrize("without", ["text_encoder", "denoiser"])
def test_graphs_of_different_precisions_work_together(half_bundle: Path, without: str, tmp_path: Path) -> None:
    """The context is float16 on one side alone."""
    bundle = Path(shutil.copytree(half_bundle, tmp_path / "x.mmrt"))
    document = json.loads((bundle / "manifest.json").read_text())
    variant = document["graphs"][without]["variants"].pop(1)
    (bundle / variant["file"]).unlink()
    del document["files"][variant["file"]]
    (bundle / "manifest.json").write_text(json.dumps(document))
    pipeline = mmrt.load(bundle, precision="fp16")
    assert pipeline.describe().engines[without] == "onnx fp32 on cpu"
    assert all(check.passed for check in replay(pipeline))


def test_an_existing_target_is_refused_at_once(sd1_checkpoint: Path, sd1_bundle: Path) -> None:
    with pytest.raises(mmrt.ExportError, match="already exists"):
        export(sd1_checkpoint, sd1_bundle)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_no_bundle(sd1_checkpoint: Path, tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import sys; from mmrt.export.exporter import export\n"
        "for step in export(sys.argv[1], sys.argv[2]): print(step.stage, flush=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(sd1_checkpoint), str(tmp_path / "x.mmrt")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == "graph":
            break
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode != 0
    assert os.listdir(tmp_path) == []


LCM: dict[str, Any] = {
    **SD1,
    "unet": {**SD1["unet"], "time_cond_proj_dim": 9},
    "scheduler": (
        "LCMScheduler",
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False},
    ),
}


@pytest.fixture(scope="module")
def lcm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent consistency model with guidance distilled into it."""
    folder = save_checkpoint(tmp_path_factory.mktemp("lcm") / "tiny-lcm", **LCM)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "LatentConsistencyModelPipeline"}))
    return folder


def test_embedded_guidance_is_diffusers(lcm_checkpoint: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(lcm_checkpoint, safety_checker=None)
    scales = torch.tensor([1.0, 4.5, 8.5])
    latents, context = torch.randn(3, 4, 6, 6), torch.randn(3, 16, 16)
    condition = pipeline.get_guidance_scale_embedding(scales - 1, embedding_dim=9)
    wanted = pipeline.unet(latents, 5, context, timestep_cond=condition, return_dict=False)[0]
    found = GuidedDenoiser(pipeline.unet)(latents, torch.full((3,), 5.0), context, scales)
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_a_latent_consistency_model_exports(lcm_checkpoint: Path, tmp_path: Path) -> None:
    for _ in export(lcm_checkpoint, tmp_path / "lcm.mmrt"):
        pass
    pipeline = mmrt.load(tmp_path / "lcm.mmrt")
    assert "negative_prompt" not in pipeline.manifest.inputs
    assert pipeline.manifest.inputs["steps"] == m.Int(default=4, min=1, max=1000)
    assert pipeline.generate("a red heart", seed=1).image.size == (64, 64)
