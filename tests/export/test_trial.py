"""Recipes of one's own: each mistake in them is said, with the graph, what is wrong and what to do."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from mmrt.export import (  # noqa: E402
    Autoregress,
    Choice,
    Count,
    Fit,
    Float,
    Graph,
    Image,
    ImageOutput,
    Int,
    Once,
    Recipe,
    Seed,
    Text,
    Tokenize,
    trial,
)
from mmrt.export.graph import write_onnx  # noqa: E402
from mmrt.runtime.errors import ExportError  # noqa: E402

PICTURE = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STRENGTH = torch.tensor([0.5, 1.0, 2.0])
Forward = Callable[..., Any]


class Change(torch.nn.Module):  # type: ignore[misc]
    """A layer, and a function of it, the picture and the strength."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(3, 3)
        self._forward = forward

    def forward(self, picture: Any, strength: Any) -> Any:
        return self._forward(self, picture, strength)


def fine(module: Any, picture: Any, strength: Any) -> Any:
    """Pixels of the picture, mixed and made stronger."""
    return pixels(module.mix(picture / 255) * strength[:, None, None, None])


def pixels(floats: Any) -> Any:
    """Floats in [0, 1] as uint8."""
    return (floats.clamp(0, 1) * 255).round().to(torch.uint8)


def recipe(forward: Forward = fine, **graph: Any) -> Recipe:
    """A recipe with one graph, some of whose fields are others."""
    made = Graph(Change(forward).eval(), {"picture": PICTURE, "strength": STRENGTH}, ("pixels",))
    if graph.keys() & {"inputs", "outputs"}:
        graph = {"free": {}} | graph
    return Recipe(
        task="image-to-image",
        inputs={
            "image": Image(array="picture", fit=Fit(width=8, height=8, resample="nearest"), required=True),
            "strength": Float(default=1.0, min=0.0, max=9.0, array="strength"),
        },
        outputs={"image": ImageOutput(source="pixels")},
        graphs={"change": dataclasses.replace(made, **graph)},
        program=(Once(graphs=("change",)),),
    )


def module(change: Callable[[Any], Any]) -> Any:
    """The module after `change`."""
    made = Change(fine).eval()
    return change(made) or made


def with_noise(m: Any, picture: Any, strength: Any) -> Any:
    return pixels(m.mix(picture / 255) + torch.randn(3))


def that_counts(m: Any, picture: Any, strength: Any) -> Any:
    m.calls = getattr(m, "calls", 0) + 1
    return fine(m, picture, strength * m.calls)


def in_place(m: Any, picture: Any, strength: Any) -> Any:
    return fine(m, picture, strength.mul_(2))


def over_rows(m: Any, picture: Any, strength: Any) -> Any:
    return fine(m, picture, strength / strength.sum())


def squeezed(m: Any, picture: Any, strength: Any) -> Any:
    return fine(m, picture, strength).squeeze()


def of_two_rows(m: Any, picture: Any, strength: Any) -> Any:
    return fine(m, picture, strength / strength[1].numel())


def of_some_rows(m: Any, picture: Any, strength: Any) -> Any:
    return fine(m, picture, strength)[strength > 0.7]


Wrong = tuple[Callable[[], Recipe], str]
GRAPHS: dict[str, Wrong] = {
    # what the recipe says
    "no graph": (
        lambda: dataclasses.replace(recipe(), graphs={"change": Change(fine)}),  # type: ignore[dict-item]
        "change: is of type Change, wanted a mmrt.export.Graph",
    ),
    "no module": (lambda: recipe(module=fine), "module is of type function, wanted a torch.nn.Module"),
    "one name as a text": (lambda: recipe(outputs="pixels"), r"outputs is 'pixels', wanted a tuple of names"),
    "no outputs": (lambda: recipe(outputs=()), r"outputs is \(\), wanted a tuple"),
    "no inputs": (lambda: recipe(inputs={}), "inputs is {}, wanted example tensors"),
    "an example of NumPy": (
        lambda: recipe(inputs={"picture": PICTURE.numpy(), "strength": STRENGTH}),
        "the example of 'picture' is of type ndarray, wanted a torch.Tensor",
    ),
    "an odd name": (lambda: recipe(outputs=("Pixels",)), "the name 'Pixels' is not of a-z"),
    "an odd dimension": (lambda: recipe(free={"picture": {0: "batch size"}}), "the name 'batch size' is not of a-z"),
    "a name twice": (lambda: recipe(outputs=("picture",)), "'picture' is named twice"),
    "free of nothing": (lambda: recipe(free={"image": {0: "rows"}}), "`free` names 'image', which is no input"),
    "free beyond": (
        lambda: recipe(free={name: {0: "rows", 4: "more"} for name in ("picture", "strength", "pixels")}),
        "`free` names dimension 4 of 'picture', which has 4",
    ),
    "rows that are not free": (
        lambda: recipe(free={name: {1: "height"} for name in ("picture", "strength", "pixels")}),
        "`free` does not name dimension 0 of 'picture': it is that of rows",
    ),
    # the module
    "training mode": (lambda: recipe(module=Change(fine)), "change: it is in training mode: call eval"),
    "a part in training mode": (
        lambda: recipe(module=module(lambda m: m.mix.train() and None)),
        r"change: mix is in training mode: call eval\(\)",
    ),
    "another device": (
        lambda: recipe(module=Change(fine).eval().to("meta")), "mix.weight is on the device meta: call cpu"
    ),
    "half precision": (lambda: recipe(module=Change(fine).eval().half()), r"mix.weight is float16, .* call float\(\)"),
    # names and forward
    "a name that forward has not": (
        lambda: recipe(inputs={"image": PICTURE, "strength": STRENGTH}),
        "forward takes picture, strength, the recipe gives 'image': name them alike",
    ),
    "an input without an example": (lambda: recipe(inputs={"picture": PICTURE}), "forward needs 'strength', of which"),
    # arrays
    "an example on another device": (
        lambda: recipe(inputs={"picture": PICTURE.to("meta"), "strength": STRENGTH}),
        "'picture' is on the device meta, wanted cpu",
    ),
    "a sparse example": (
        lambda: recipe(inputs={"picture": PICTURE, "strength": STRENGTH.to_sparse()}), r"is sparse: call to_dense\(\)"
    ),
    "int8": (
        lambda: recipe(inputs={"picture": PICTURE, "strength": STRENGTH.to(torch.int8)}),
        "'strength' is int8, wanted one of float32, .*: convert it",
    ),
    "complex": (lambda: recipe(lambda m, p, s: torch.fft.fft(p.float())), "'pixels' is complex64, wanted one of"),
    "float64": (lambda: recipe(lambda m, p, s: m.mix(p / 255).double()), "'pixels' is float64, wanted one of"),
    "bfloat16": (lambda: recipe(lambda m, p, s: m.mix(p / 255).bfloat16()), "'pixels' is bfloat16, wanted one of"),
    "an example that is one number": (
        lambda: recipe(inputs={"picture": PICTURE, "strength": torch.tensor(1.0)}),
        "'strength' is a single number, wanted one for each row",
    ),
    "an output that is one number": (lambda: recipe(lambda m, p, s: s.sum()), "'pixels' is a single number"),
    "one row": (
        lambda: recipe(inputs={"picture": PICTURE[:1], "strength": STRENGTH[:1]}),
        "dimension 0 of the example 'picture' is free and 1: give 2 or more",
    ),
    "rows of other numbers": (
        lambda: recipe(
            lambda m, p, s: fine(m, p[:2], s), inputs={"picture": PICTURE, "strength": STRENGTH[:2]}
        ),
        "'rows' is 3 in 'picture', and 2 in 'strength'",
    ),
    "rows that depend on values": (lambda: recipe(of_some_rows), r"'rows' is 3 in 'picture', and 2 in 'pixels'"),
    # what forward does
    "it fails": (
        lambda: recipe(inputs={"picture": PICTURE[..., :2], "strength": STRENGTH}),
        "change: fails with its example inputs: RuntimeError: ",
    ),
    "two outputs wanted": (
        lambda: recipe(outputs=("pixels", "more")), "forward gives Tensor, wanted 2 tensors: pixels, more"
    ),
    "two outputs given": (lambda: recipe(lambda m, p, s: (p, s)), "forward gives Tensor, Tensor, wanted 1 tensors"),
    "no tensor": (lambda: recipe(lambda m, p, s: 3), "forward gives int, wanted 1 tensors: pixels"),
    "a dict": (lambda: recipe(lambda m, p, s: {"pixels": p}), "forward gives dict, .* give a tensor or a tuple"),
    "chance": (lambda: recipe(with_noise), "'pixels' is another in a second call .*: let noise be an input"),
    "what is kept": (lambda: recipe(that_counts), "'pixels' is another in a second call .* keep nothing from call"),
    "in place": (lambda: recipe(in_place), "forward changes its input 'strength' in place"),
    "rows that mix": (lambda: recipe(over_rows), "'pixels' of the first row alone is another than among the others"),
    "a squeezed row": (lambda: recipe(squeezed), r"of the first row alone is another .* not uint8\(8, 8, 3\)"),
    "a row alone": (lambda: recipe(of_two_rows), "change: does not take one row alone: fails with its example"),
}  # fmt: skip


def changed(**fields: Any) -> Recipe:
    """The recipe with other fields; those that are dicts are joined."""
    made = recipe()
    joined = {key: {**getattr(made, key), **each} if isinstance(each, dict) else each for key, each in fields.items()}
    return dataclasses.replace(made, **joined)


def renamed(name: str, **inputs: Any) -> Recipe:
    """The recipe whose input `strength` has another name, with further inputs before it."""
    made = recipe()
    given = {"image": made.inputs["image"], **inputs, name: made.inputs["strength"]}
    return dataclasses.replace(made, inputs=given)


IDLE = Graph(torch.nn.Linear(3, 3).eval(), {"input": torch.zeros(2, 3)}, ("output",))
PROGRAMS: dict[str, Wrong] = {
    "a graph that no stage runs": (lambda: changed(graphs={"idle": IDLE}), "idle: no stage of the program runs"),
    "a stage of a graph that is not there": (
        lambda: changed(program=(Once(graphs=("change", "other")),)), "no graph is named 'other'"
    ),
    "a name as the graphs": (lambda: changed(program=(Once(graphs="change"),)), r"Expected `array`, got `str`"),  # type: ignore[arg-type]
    "no program": (lambda: changed(program=()), "Expected `array` of length >= 1"),
    "a stage that is none": (lambda: changed(program=("change",)), "Expected `object`, got `str`"),
    "a picture that nobody reads": (
        lambda: changed(inputs={"mask": Image(array="mask", fit=Fit(width=8, height=8, resample="box"))}),
        "the input 'mask' is read by nobody: no graph takes 'mask'",
    ),
    "a text that nobody reads": (
        lambda: changed(
            inputs={"prompt": Text(tokenize={"ids": Tokenize(file="words.json", length=8, pad=0)}, default="")},
            files={"words.json": b"{}"},
        ),
        "the input 'prompt' is read by nobody: no graph takes 'ids'",
    ),
    "a text without tokens": (
        lambda: changed(inputs={"prompt": Text()}), "'prompt' is read by nobody: nothing in the program names it"
    ),
    "a number that nobody reads": (
        lambda: changed(inputs={"steps": Int(default=1, min=1, max=9)}), "'steps' is read by nobody: nothing"
    ),
    "a choice that nobody reads": (
        lambda: changed(inputs={"mode": Choice(default="a", choices=("a", "b"))}), "'mode' is read by nobody"
    ),
    "a name that is an option of mmrt's": (
        lambda: renamed("output"),
        "the input 'output' is --output on the command line, an option of mmrt itself: name it otherwise",
    ),
    "two names that are one option": (
        lambda: renamed("num_texts", num_images=Count(max=4)),
        "the inputs 'num_images' and 'num_texts' are both -n on the command line: name one otherwise",
    ),
    "an array that nobody makes": (
        lambda: changed(inputs={"strength": Float(default=1.0, min=0.0, max=2.0)}),
        "nothing makes 'strength' for graph 'change'",
    ),
    "another dtype": (
        lambda: changed(inputs={"strength": Int(default=1, min=0, max=2, array="strength")}),
        r"'strength' is made as int64\(\?\), graph 'change' takes float32\(\?\)",
    ),
    "another size": (
        lambda: changed(inputs={"image": Image(array="picture", fit=Fit(width=16, height=8, resample="box"))}),
        r"'picture' is made as uint8\(\?, 8, 16, 3\), graph 'change' takes uint8\(\?, 8, 8, 3\)",
    ),
    "an output that nobody makes": (
        lambda: changed(outputs={"image": ImageOutput(source="picture_out")}), "no graph makes 'picture_out'"
    ),
    "a picture of floats": (
        lambda: recipe(lambda m, p, s: m.mix(p / 255)), r"'pixels' is made as float32.*, a picture takes uint8"
    ),
    "an output of another kind": (lambda: changed(outputs={"image": "pixels"}), "Expected `object`, got `str`"),
    "a file that is not there": (
        lambda: changed(inputs={"prompt": Text(tokenize={"ids": Tokenize(file="words.json", length=8, pad=0)})}),
        "'words.json' is not listed in `files`",
    ),
    "a loop without logits": (
        lambda: changed(
            program=(
                Autoregress(
                    graphs=("change",), caches={"strength": "pixels"}, limit=8, prompt=(1,), pad=0, ends=(2,),
                    options={},
                ),
            )
        ),
        r"float32\(rows\) becomes uint8\(rows, 8, 8, 3\): wanted the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_a_wrong_graph_is_said(case: str) -> None:
    make, message = GRAPHS[case]
    with pytest.raises(ExportError) as caught:
        trial.run(make())
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(caught.value).startswith("change: ")


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_wrong_program_is_said(case: str) -> None:
    make, message = PROGRAMS[case]
    with pytest.raises(ExportError) as caught:
        trial.run(make())
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    "forward",
    [
        fine,
        lambda m, picture, strength: fine(m, picture.permute(1, 0, 2, 3).permute(1, 0, 2, 3), strength),
        lambda m, picture, strength: [fine(m, picture, strength)],
        lambda m, picture, strength: fine(m, picture, strength).flip(2),
    ],
)
def test_what_is_right_passes(forward: Forward) -> None:
    golden = trial.run(recipe(forward))
    assert set(golden.arrays) == {
        "graph/change/0/in/picture", "graph/change/0/in/strength", "graph/change/0/out/pixels"
    }  # fmt: skip
    assert golden.cases == ()


def test_examples_need_not_be_contiguous_nor_without_gradient() -> None:
    strength = torch.tensor([[0.5, 9], [1, 9], [2, 9]], requires_grad=True)[:, 0]
    picture = PICTURE.permute(0, 2, 1, 3)
    golden = trial.run(recipe(inputs={"picture": picture, "strength": strength}))
    np.testing.assert_array_equal(golden.arrays["graph/change/0/in/picture"], picture.numpy())


def test_noise_and_seed_are_inputs() -> None:
    """Chance comes in as an array that the stage draws."""
    noisy = Graph(torch.nn.Linear(4, 4).eval(), {"input": torch.zeros(2, 4)}, ("output",))
    made = changed(
        graphs={"noisy": noisy},
        inputs={"seed": Seed()},
        program=(Once(graphs=("change", "noisy"), draws={"input": ("batch", 4)}),),
    )
    assert len(trial.run(made).arrays) == 5


TORCH: dict[str, tuple[Forward, str]] = {  # what only torch.export finds
    "an if about values": (
        lambda m, p, s: fine(m, p, s) if float(s.sum()) > 0 else fine(m, p, s * 2),
        "looks at what a tensor holds: use torch.where",
    ),
    "NumPy": (
        lambda m, p, s: fine(m, p, torch.tensor(s.numpy() * 2)), "NumPy cannot be exported: compute with torch"
    ),
    "no such operator": (
        lambda m, p, s: fine(m, p, torch.special.bessel_j0(s)), "ONNX has no operator for torch's prims.bessel_j0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TORCH)
def test_what_torch_cannot_express_is_said(tmp_path: Path, case: str) -> None:
    forward, message = TORCH[case]
    graph = recipe(forward).graphs["change"]
    with pytest.raises(ExportError) as caught:
        write_onnx("change", graph, tmp_path / "change.onnx")
    assert re.search(message, str(caught.value)), str(caught.value)


def test_a_free_dimension_that_the_code_fixes_is_said(tmp_path: Path) -> None:
    sized = {name: {0: "rows", 1: "height"} for name in ("picture", "pixels")} | {"strength": {0: "rows"}}
    made = recipe(lambda m, p, s: fine(m, p.reshape(-1, 8, 8, 3), s), free=sized)
    with pytest.raises(
        ExportError, match=r"the code fixes dimension 1 of 'picture', which is free: write picture.shape"
    ):
        write_onnx("change", made.graphs["change"], tmp_path / "change.onnx")
