"""Pictures of codes, against dalle-pytorch itself: the same codes and the same pictures, and what is refused.

It and taming, whose VQGANs it takes, are not among the declared packages, as what they declare does not install;
`export/dalle_library.py` says what does.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from checkpoints import export_bundle
from PIL import Image

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
if not all(map(importlib.util.find_spec, ("dalle_pytorch", "taming"))):
    pytest.skip("dalle-pytorch or taming is not installed", allow_module_level=True)

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from mmrt.export.checkpoint import Checkpoint  # noqa: E402
from mmrt.export.dalle_checkpoint import clip_tokenizer  # noqa: E402
from mmrt.export.dalle_library import dalle_pytorch, vqgans  # noqa: E402
from mmrt.export.families import dalle  # noqa: E402
from mmrt.export.tokenizer import PROBES  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402
from mmrt.runtime.pipeline import Pipeline, load  # noqa: E402

WORDS = ["<pad>", "<unk>", "a", "red", "heart", "two", "blue", "cars", "in", "the", "rain", *"0123456789"]
PROMPTS = ["a red heart", "two blue cars in the rain", "", "0 1 2 3 4 5 6 7 8 9 a red heart"]
TEXT, CODES = 10, 64
VAE = {
    "image_size": 32,
    "num_layers": 2,
    "num_tokens": 48,
    "codebook_dim": 16,
    "hidden_dim": 16,
    "num_resnet_blocks": 1,
}
USUAL = {"dim": 48, "num_text_tokens": len(WORDS), "text_seq_len": TEXT, "depth": 2, "heads": 2, "dim_head": 24}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "sparse": {
        "depth": 4,
        "attn_types": ("full", "axial_row", "axial_col", "conv_like"),
        "rotary_emb": False,
        "shift_tokens": False,
        "stable": True,
        "sandwich_norm": True,
        "share_input_output_emb": True,
    },
    "reversible": {"reversible": True, "attn_types": ("axial_col", "conv_like")},
    "VQGAN": {},
    "Gumbel VQGAN": {"attn_types": ("full", "axial_row")},
}
VQGANS = {
    "VQGAN": {"target": "taming.models.vqgan.VQModel", "params": {"embed_dim": 16, "n_embed": 48}},
    "Gumbel VQGAN": {"target": "taming.models.vqgan.GumbelVQ", "params": {"embed_dim": 24, "n_embed": 40}},
}
for _config in VQGANS.values():  # 256 pixels and 64 codes a picture
    _config["params"] |= {
        "ddconfig": {
            "double_z": False, "z_channels": _config["params"]["embed_dim"], "resolution": 256, "in_channels": 3,
            "out_ch": 3, "ch": 32, "ch_mult": [1] * 6, "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0,
        },
        "lossconfig": {"target": "nowhere.Loss"},
    }  # fmt: skip


def new_model(kind: str = "default") -> Any:
    """A small DALL-E with weights so large that its codes vary."""
    torch.manual_seed(4)  # no two codes of these prompts are so close that rounding decides
    library = dalle_pytorch()
    vae = new_vqgan(kind) if kind in VQGANS else library.DiscreteVAE(**VAE)
    model = library.DALLE(vae=vae, **{**USUAL, **KINDS[kind]}).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.startswith("transformer"):
            weight *= 10 if name.endswith(".scale") else 2 if weight.dim() == 2 else 1
    return model


class Config(dict[str, Any]):
    """Values by key and by attribute, as omegaconf has them, which is not installed."""

    def __getattr__(self, name: str) -> Any:
        return Config(self[name]) if isinstance(self[name], dict) else self[name]


def new_vqgan(kind: str) -> Any:
    """dalle-pytorch's own, by its own constructor, of weights in a file."""
    library, classes = dalle_pytorch(), vqgans()
    module = sys.modules[library.VQGanVAE.__module__]
    made = getattr(classes, VQGANS[kind]["target"].rpartition(".")[2])
    params = VQGANS[kind]["params"] | ({"temperature_scheduler_config": {}} if kind == "Gumbel VQGAN" else {})
    weights = made(**params).state_dict()
    for name, weight in weights.items():
        if "quantize" in name:  # as large as what the encoder gives; beside such logits Gumbel's noise is small
            weight *= 1e5 if "proj" in name else 48 if "embedding" in name else 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "OmegaConf", types.SimpleNamespace(load=lambda _: Config(model=VQGANS[kind])))
        patch.setattr(module, "instantiate_from_config", lambda _: made(**params))
        patch.setattr(torch, "load", lambda *_, **__: {"state_dict": weights})
        return library.VQGanVAE("weights", "config")


def save(folder: Path, model: Any, kind: str = "default") -> Path:
    """The file that dalle-pytorch's train_dalle.py writes, and beside it a tokenizer, and a VQGAN's configuration."""
    folder.mkdir()
    if kind in VQGANS:
        (folder / "vqgan.config.yml").write_text(yaml.safe_dump({"model": VQGANS[kind]}))
    saved = {
        "hparams": {**USUAL, **KINDS[kind]},
        "vae_params": None if kind in VQGANS else VAE,
        "epoch": 3,
        "version": "1.6.6",
        "vae_class_name": type(model.vae).__name__,
        "weights": model.state_dict(),
        "opt_state": torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict(),
        "scheduler_state": None,
    }
    torch.save(saved, folder / "dalle.pt")
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "dalle.pt"


def save_open(folder: Path, model: Any, kind: str) -> Path:
    """The same as a folder of JSON and safetensors, with shared weights there once."""
    from safetensors.torch import save_file

    save(folder, model, kind).unlink()
    weights = {name: w.clone() for name, w in model.state_dict().items() if "_emb.linear." not in name}
    save_file(weights, folder / "model.safetensors")
    config = {"hparams": {**USUAL, **KINDS[kind]}, "vae_params": VAE, "vae_class_name": "DiscreteVAE"}
    (folder / "dalle.json").write_text(json.dumps(config))
    return folder


class Source(NamedTuple):
    """A model and what was exported of it."""

    model: Any
    pipeline: Pipeline

    def ours(self, prompts: list[str], **inputs: Any) -> tuple[Any, Any]:
        """Codes that were made, and pixels."""
        arrays = self.pipeline.arrays(prompt=prompts, **({"temperature": 0.0} | inputs))
        return arrays["sequences"], arrays["pixels"]

    def theirs(self, prompts: list[str], scale: float, blank: list[str] | None = None) -> tuple[Any, Any]:
        """dalle-pytorch's forward pass on the whole, again for every code, and the most likely one."""
        codes = torch.zeros(len(prompts), 0, dtype=torch.int64)
        while codes.shape[1] < CODES:
            if blank is None:
                logits = self.model.forward_with_cond_scale(ids(prompts), codes, cond_scale=scale)[:, -1]
            else:
                wanted, other = (self.model(ids(texts), codes)[:, -1] for texts in (prompts, blank))
                logits = other + scale * (wanted - other)
            codes = torch.cat([codes, logits.argmax(-1, keepdim=True) - self.model.num_text_tokens], dim=1)
        return codes.numpy(), self.pixels(self.model.vae.decode(codes))

    def pixels(self, made: Any) -> Any:
        """What the VAE makes, as uint8 (rows, height, width, 3)."""
        floats = made / 2 + 0.5 if hasattr(self.model.vae, "normalization") else made
        return (floats.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def ids(prompts: list[str]) -> Any:
    """int64 (texts, 10), padded with 0."""
    rows = [[WORDS.index(word) for word in prompt.split()][:TEXT] for prompt in prompts]
    return torch.tensor([row + [0] * (TEXT - len(row)) for row in rows])


def psnr(found: Any, wanted: Any) -> float:
    error = float(np.mean((found.astype(float) - wanted.astype(float)) ** 2))
    return 100.0 if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """Each kind, exported once: one from the folder, one from the file, one from open files."""

    @cache
    def make(kind: str) -> Source:
        folder, model = tmp_path_factory.mktemp(kind.replace(" ", "")), new_model(kind)
        keep = save_open if kind == "sparse" else save
        checkpoint = keep(folder / "checkpoint", model, kind)
        checkpoint = checkpoint.parent if kind == "default" else checkpoint
        return Source(model, load(export_bundle(checkpoint, folder / f"{kind}.mmrt")))

    return make


@pytest.mark.filterwarnings("ignore:the text is longer")
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_pictures_are_dalle_pytorchs(sources: Callable[[str], Source], kind: str, scale: float) -> None:
    source, every = sources(kind), set()
    for prompts in (PROMPTS[:1], PROMPTS):
        found, picture = source.ours(prompts, guidance=scale)
        wanted, their_picture = source.theirs(prompts, scale)
        assert (found == wanted).all(), prompts
        assert psnr(picture, their_picture) >= 40
        every |= {*map(tuple, found)}
    assert len(every) == len(PROMPTS)
    assert len({code for row in every for code in row}) > 12


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_picture_begins_as_in_generate_images(sources: Callable[[str], Source], kind: str) -> None:
    source = sources(kind)
    random = np.random.default_rng(0)
    patch = np.ones((1, source.model.vae.image_size // 8, source.model.vae.image_size // 8, 1))
    pictures = list(np.kron(random.integers(0, 256, (2, 8, 8, 3)), patch).astype(np.uint8))
    given = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    made, picture = source.ours(PROMPTS[:2], image=pictures)
    assert made.shape == (2, CODES - 28)
    assert (
        psnr(picture, source.pixels(source.model.generate_images(ids(PROMPTS[:2]), filter_thres=1.0, img=given))) >= 40
    )
    assert not np.array_equal(picture, source.ours(PROMPTS[:2])[1])


def test_generate_images_gives_the_same_pictures(sources: Callable[[str], Source]) -> None:
    source = sources("default")
    wanted = source.pixels(
        source.model.generate_images(ids(PROMPTS[:2]), filter_thres=1.0)
    )  # the most likely code alone
    assert psnr(source.ours(PROMPTS[:2])[1], wanted) >= 40
    assert psnr(source.ours(PROMPTS[:2], temperature=1.0, top_k=1)[1], wanted) >= 40


def test_a_negative_prompt_and_one_picture_for_two_texts(sources: Callable[[str], Source]) -> None:
    source, (first, second, *_) = sources("default"), PROMPTS
    found, picture = source.ours([first, second], negative_prompt=second, guidance=2.5)
    wanted, their_picture = source.theirs([first, second], 2.5, blank=[second, second])
    assert (found == wanted).all()
    assert psnr(picture, their_picture) >= 40


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_given_pictures_with_guidance_and_several_results(sources: Callable[[str], Source], scale: float) -> None:
    source, prompts = sources("default"), PROMPTS[:2]
    given = [Image.fromarray(each) for each in source.ours(PROMPTS[1::-1])[1]]
    request = {"image": given, "guidance": scale, "seed": 3, "num_images": 2}
    four = source.pipeline.generate(prompts, **request).images
    alone = source.pipeline.generate(prompts[1], image=given[1], guidance=scale, seed=6).images
    assert len(four) == 4
    assert np.array_equal(four[3], alone[0])
    floats = torch.from_numpy(np.stack(given)).permute(0, 3, 1, 2).float() / 255
    first = source.model.vae.get_codebook_indices(floats)[:, :28].numpy()
    codes = source.pipeline.arrays(prompt=prompts, **request)["codes"]
    assert np.array_equal(codes[:, :28], first.repeat(2, axis=0))


def test_seeds_make_different_pictures_and_the_same_again(sources: Callable[[str], Source]) -> None:
    pipeline = sources("default").pipeline
    first, second = pipeline.generate("a red heart", seed=5, num_images=2).images
    again = pipeline.generate("a red heart", seed=6).images[0]
    assert first.size == (32, 32)
    assert (np.asarray(second) == np.asarray(again)).all()
    assert (np.asarray(first) != np.asarray(second)).any()
    with pytest.raises(RequestError, match="size"):
        pipeline.generate("a red heart", size=(64, 64))


@pytest.fixture
def simple_tokenizer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """dalle-pytorch's, with as much of ftfy as is kept."""
    dalle_pytorch()
    repair = types.SimpleNamespace(fix_text=lambda text: unicodedata.normalize("NFC", text))
    monkeypatch.setitem(sys.modules, "ftfy", repair)
    monkeypatch.setitem(sys.modules, "youtokentome", types.ModuleType("youtokentome"))
    yield importlib.import_module("dalle_pytorch.tokenizer").SimpleTokenizer()
    sys.modules.pop("dalle_pytorch.tokenizer")


def test_the_own_tokenizer_is_the_simple_tokenizer(simple_tokenizer: Any) -> None:
    made = clip_tokenizer()
    for text in PROBES:
        if "<|" not in text:  # nobody types these
            assert made.encode(text).ids == simple_tokenizer.encode(text), text
    assert made.get_vocab() == simple_tokenizer.encoder


def change(**saved: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file.update(saved)


def options(**options: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file["hparams"].update(options)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another VAE": (change(vae_class_name="OpenAIDiscreteVAE", vae_params=None), "the VAE is OpenAI.*, supported are"),
    "an old file without its VAE": (change(vae_class_name=None, vae_params=None), "supported are dalle-pytorch's own"),
    "a VQGAN without its file": (change(vae_class_name="VQGanVAE", vae_params=None), "has 0 YAML files, wanted one"),
    "sparse attention": (options(attn_types=("full", "sparse")), "attn_types has 'sparse', supported are full"),
    "unknown options": (options(wings=2), "makes no model of it: TypeError"),
    "other sizes": (options(dim_head=36), "wanted"),
    "a width that cannot be shifted": (options(dim=50), "dim is 50"),
    "too few tokens": (options(num_text_tokens=5), r"has 21 tokens, the model's num_text_tokens is 5|wanted"),
    "no options": (lambda file: file.pop("hparams"), "has no hparams"),
    "no weights": (lambda file: file.pop("weights"), "has no weights"),
    "a missing weight": (lambda file: file["weights"].pop("to_logits.1.bias"), r"missing: to_logits\.1\.bias"),
    "NaN": (lambda file: file["weights"]["to_logits.1.bias"].fill_(torch.nan), "holds NaN"),
    "code": (change(hook=Path), "without running code"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    file = save(tmp_path / "checkpoint", new_model())
    saved = torch.load(file, weights_only=True)
    damage, message = REFUSED[case]
    damage(saved)
    torch.save(saved, file)
    with pytest.raises(ExportError, match=message):
        dalle.recipe(Checkpoint(file))


SIZES = VQGANS["VQGAN"]["params"]["ddconfig"]
UNFIT: dict[str, tuple[Any, str]] = {
    "no YAML": ("[", "not the configuration of a VQGAN: ParserError"),
    "code": ("!!python/object/apply:os.abort []", "not the configuration of a VQGAN: ConstructorError"),
    "something else": ("model: 3", "not the configuration of a VQGAN: TypeError"),
    "another class": ({"target": "os.abort"}, r"target is 'os\.abort', supported are"),
    "remapped": ({"remap": "used.npy"}, "remapped"),
    "grey": ({"ddconfig": SIZES | {"in_channels": 1}}, "channels than 3"),
    "other attention": ({"ddconfig": SIZES | {"attn_resolutions": [16]}}, "attention at 1/16 .*, wanted 1/32"),
    "wrong types": ({"ddconfig": SIZES | {"ch": "wide"}}, "makes no model of it: "),
    "other sizes": ({"embed_dim": 20}, r"is \(48, 16\), wanted \(48, 20\)|wanted"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_configurations_of_vqgans_that_are_refused(tmp_path: Path, case: str) -> None:
    file = save(tmp_path / "checkpoint", new_model("VQGAN"), "VQGAN")
    change, message = UNFIT[case]
    if isinstance(change, dict):
        model = VQGANS["VQGAN"]
        target = change.pop("target", model["target"])
        change = yaml.safe_dump({"model": {"target": target, "params": model["params"] | change}})
    (file.parent / "vqgan.config.yml").write_text(change)
    with pytest.raises(ExportError, match=message):
        dalle.recipe(Checkpoint(file))


def test_a_tokenizer_must_be_there(tmp_path: Path) -> None:
    file = save(tmp_path / "checkpoint", new_model())
    (tmp_path / "checkpoint" / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer\.json: is missing"):
        dalle.recipe(Checkpoint(file))
    file.write_bytes(b"nothing")
    with pytest.raises(ExportError, match="without running code"):
        dalle.recipe(Checkpoint(tmp_path / "checkpoint"))
