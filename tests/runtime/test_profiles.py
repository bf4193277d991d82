"""The sizes that engines are built for: what follows from the inputs, and what a user asks for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import mmrt
from mmrt.runtime import manifest as m
from mmrt.runtime import profiles
from mmrt.runtime.bundle import Bundle

Plain = dict[str, tuple[int, int, int]]


def plain(sizes: m.Sizes) -> Plain:
    return {name: (size.min, size.opt, size.max) for name, size in sizes.items()}


def found(bundle: Path, *shapes: str) -> dict[str, list[Plain]]:
    manifest = Bundle(bundle).manifest
    return {name: [*map(plain, each)] for name, each in profiles.profiles(manifest, profiles.read(shapes)).items()}


def test_sizes_follow_from_the_inputs(handmade: Path) -> None:
    wanted = found(handmade)
    assert wanted.keys() == Bundle(handmade).manifest.graphs.keys()
    size = next(each for each in Bundle(handmade).manifest.inputs.values() if isinstance(each, m.Size))
    width, height = size.default
    assert wanted["text_encoder"] == [{"batch": (1, 1, 8)}]
    assert wanted["denoiser"] == [  # guided: two rows a picture
        {"batch": (1, 2, 8), "height": (1, height // 8, height // 4), "width": (1, width // 8, width // 4)}
    ]
    assert wanted["decoder"][0]["batch"] == (1, 1, 8)


def test_of_vectors_many_are_made_at_once(handmade: Path) -> None:
    manifest = Bundle(handmade).manifest
    vectors = msgspec.structs.replace(manifest, outputs={"vector": m.VectorOutput(source="context")})
    assert plain(profiles.profiles(vectors)["text_encoder"][0]) == {"batch": (1, 8, 32)}


def test_what_is_asked_for_holds(handmade: Path) -> None:
    wanted = found(handmade, "batch=4, denoiser.batch=1:2:3", "size=64x32:64x64:128x64")
    assert wanted["text_encoder"] == [{"batch": (4, 4, 4)}]
    assert wanted["denoiser"] == [{"batch": (1, 2, 3), "height": (4, 8, 8), "width": (8, 8, 16)}]


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ("bath=1:2:3", "no graph has a free dimension 'bath'; there are batch, "),
        ("batch=1:2", "'batch=1:2' is not NAME=SIZE or NAME=MIN:OPT:MAX"),
        ("batch=0", "'batch=0' is not NAME=SIZE"),
        ("batch", "'batch' is not NAME=SIZE"),
        ("batch=3:2:1", "'batch=3:2:1' is not in order"),
        ("size=512", "'size=512' is not NAME=SIZE"),
        ("size=64x64:32x64:64x64", "is not in order"),
    ],
)
def test_what_is_no_size_is_said(handmade: Path, shapes: str, says: str) -> None:
    with pytest.raises(mmrt.RequestError, match="shapes: ") as caught:
        found(handmade, shapes)
    assert says in str(caught.value)


def decoder() -> m.Manifest:
    """A decoder with caches after an encoder of texts of up to 100 tokens."""
    cache = m.Array(dtype="float32", shape=("rows", 2, "capacity", 4))
    states = ("texts", "source", 8)
    encoder = m.Graph(
        inputs={"ids": m.Array(dtype="int64", shape=("texts", "source"))},
        outputs={"states": m.Array(dtype="float32", shape=states)},
        variants=(m.Variant(engine="onnx", precision="fp32", file="graphs/encoder.onnx"),),
    )
    step = m.Graph(
        inputs={
            "tokens": m.Array(dtype="int64", shape=("rows", "sequence")),
            "positions": m.Array(dtype="int64", shape=("rows",)),
            "states": m.Array(dtype="float32", shape=("rows", "places", 8)),
            "key": cache,
        },
        outputs={"logits": m.Array(dtype="float32", shape=("rows", 50)), "new_key": cache},
        variants=encoder.variants,
    )
    text = m.Tokenize(file="tokenizers/source.json", length=100, pad=0, mask="mask")
    return m.Manifest(
        format=1,
        task="text-to-text",
        name="decoder",
        source=m.Source(family="none", checkpoint={}, versions={}),
        inputs={"text": m.Text(tokenize={"ids": text})},
        outputs={"text": m.TextOutput(source="sequences", file="tokenizers/source.json")},
        graphs={"encoder": encoder, "step": step},
        program=(
            m.Once(graphs=("encoder",)),
            m.Autoregress(
                graphs=("step",), caches={"key": "new_key"}, limit=200, prompt=(0,), pad=0, ends=(1,), options={}
            ),
        ),
        files={},
    )


def test_a_decoder_has_a_profile_for_a_step_and_caches_of_one_length() -> None:
    wanted = profiles.profiles(decoder())
    assert [*map(plain, wanted["encoder"])] == [{"texts": (1, 1, 8), "source": (1, 32, 100)}]
    step, several = map(plain, wanted["step"])
    fixed = {"rows": (1, 1, 8), "places": (1, 32, 100), "capacity": (256, 256, 256)}
    assert step == fixed | {"sequence": (1, 1, 1)}
    assert several == fixed | {"sequence": (1, 32, 256)}
    step, several = map(plain, profiles.profiles(decoder(), profiles.read(["capacity=64"]))["step"])
    assert (several["capacity"], several["sequence"]) == ((64, 64, 64), (1, 32, 64))


@pytest.mark.parametrize(("count", "wanted"), [(None, (1, 256, 256)), (30, (30, 30, 30))])
def test_what_reads_the_tokens_takes_as_many_as_the_caches(count: int | None, wanted: tuple[int, int, int]) -> None:
    manifest = decoder()
    whole, codes = (m.Array(dtype="int64", shape=("rows", size)) for size in ("tokens", 64))
    graph = m.Graph(inputs={"sequences": whole}, outputs={"codes": codes}, variants=manifest.graphs["step"].variants)
    encode, loop = manifest.program
    program = (encode, m.Autoregress(**{**_fields(loop), "count": count}), m.Once(graphs=("codes",)))
    made = m.Manifest(**{**_fields(manifest), "graphs": manifest.graphs | {"codes": graph}, "program": program})
    assert plain(profiles.profiles(made)["codes"][0]) == {"rows": (1, 1, 8), "tokens": wanted}


def test_a_size_that_nothing_says_must_be_given() -> None:
    manifest = decoder()
    inputs = {"ids": manifest.graphs["encoder"].inputs["ids"], "odd": m.Array(dtype="int64", shape=("texts", "what"))}
    graphs = manifest.graphs | {"encoder": m.Graph(**{**_fields(manifest.graphs["encoder"]), "inputs": inputs})}
    odd = m.Manifest(**{**_fields(manifest), "graphs": graphs})
    with pytest.raises(mmrt.RequestError, match=r"nothing says how large 'what' gets: --shapes encoder\.what=MIN:OPT"):
        profiles.profiles(odd)
    assert plain(profiles.profiles(odd, profiles.read(["what=1:2:3"]))["encoder"][0])["what"] == (1, 2, 3)


def _fields(struct: m._Struct) -> dict[str, object]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}
