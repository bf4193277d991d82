"""Generators of one pass: pictures are those of the module itself with torch's noise."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import mmrt  # noqa: E402
from mmrt.export import TextEncoder, Tokenize, generator  # noqa: E402
from mmrt.export.exporter import export  # noqa: E402
from mmrt.runtime.errors import ExportError, RequestError  # noqa: E402
from mmrt.runtime.receipt import replay  # noqa: E402

functional: Any = torch.nn.functional
nn: Any = torch.nn


def dcgan(latents: int, width: int, colours: int, ups: int) -> Any:
    """The generator of arXiv 1511.06434, as PyTorch's tutorial has it, with other sizes."""
    widths = [width * 2**up for up in reversed(range(ups))]
    layers: list[Any] = [nn.ConvTranspose2d(latents, widths[0], 4, 1, 0, bias=False)]
    for wide, narrow in zip(widths, [*widths[1:], colours], strict=True):
        layers += [nn.BatchNorm2d(wide), nn.ReLU(True), nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


class Conditional(nn.Module):  # type: ignore[misc]
    """Of classes: their vectors scale the noise, and normalisation too, as in arXiv 1610.09585 and 1809.11096."""

    def __init__(self) -> None:
        super().__init__()
        self.of_class = nn.Embedding(3, 8)
        self.scale = nn.Embedding(3, 16)
        self.start = nn.Linear(8, 16 * 4 * 4)
        self.normalize = nn.BatchNorm2d(16, affine=False)
        self.draw = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(16, 3, 3, padding=1), nn.Tanh())

    def forward(self, latents: Any, labels: Any) -> Any:
        states = self.start(latents * self.of_class(labels)).unflatten(1, (16, 4, 4))
        return self.draw(self.normalize(states) * self.scale(labels)[:, :, None, None])


def settled(module: Any, *inputs: Any) -> Any:
    """In eval mode, after normalisation has seen something."""
    with torch.no_grad():
        for _ in range(3):
            module.train()(*inputs)
    return module.eval()


def exported(recipe: Any, folder: Path) -> mmrt.Pipeline:
    for _ in export(recipe, folder / "gan.mmrt"):
        pass
    return mmrt.load(folder / "gan.mmrt", threads=1)


def noise(seed: int, *shape: int) -> Any:
    torch.manual_seed(seed)
    return torch.randn(1, *shape)


def same(found: Any, wanted: Any) -> None:
    """uint8 pictures of a module's (pictures, colours, height, width)."""
    pixels = ((wanted / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    assert np.abs(np.stack([np.asarray(each) for each in found]).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("colours", [3, 1])
def test_noise_to_pictures(colours: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = settled(dcgan(10, 4, colours, ups=2), torch.randn(32, 10, 1, 1))
    pipeline = exported(generator(module, (10, 1, 1)), tmp_path)
    assert all(check.passed for check in replay(pipeline))
    found = pipeline.generate(seed=3, num_images=4).images
    with torch.no_grad():
        same(found, module(torch.cat([noise(3 + place, 10, 1, 1) for place in range(4)])))
    assert found[0].size == (16, 16)
    assert np.array_equal(np.asarray(pipeline.generate(seed=5).image), np.asarray(found[2]))


def test_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = settled(Conditional(), torch.randn(32, 8), torch.arange(32) % 3)
    pipeline = exported(generator(module, (8,), ("red panda", "cat", "dog")), tmp_path)
    assert [check.what for check in replay(pipeline)][-1] == "class_2: pixels"
    drawn = {}
    for number, label in enumerate(("red panda", "cat", "dog")):
        drawn[label] = pipeline.generate(label=label, seed=11, num_images=2).images
        with torch.no_grad():
            same(drawn[label], module(torch.cat([noise(11, 8), noise(12, 8)]), torch.full((2,), number)))
    assert not np.array_equal(np.asarray(drawn["cat"][0]), np.asarray(drawn["dog"][0]))
    assert np.array_equal(np.asarray(pipeline.generate(seed=11).image), np.asarray(drawn["red panda"][0]))
    with pytest.raises(RequestError, match="label is 'bird', wanted one of red panda, cat, dog"):
        pipeline.generate(label="bird")


WORDS = ["[PAD]", "a", "small", "red", "yellow", "bird", "with", "white", "wings"]
EXAMPLES = ("a red bird", "a small yellow bird with white wings", "a bird with red wings")
PROMPTS = ["a small bird with wings", "yellow", "a small yellow bird with white wings", "a red red red bird"]


def words() -> Any:
    """A tokenizer of words."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: place for place, word in enumerate(WORDS)}, "[PAD]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def ids(texts: list[str], length: int = 0) -> Any:
    """As the tokenizer itself pads them: to the longest, or a length."""
    made = words()
    made.enable_padding(length=length or None)
    return torch.tensor([each.ids for each in made.encode_batch(texts)])


class Sentence(nn.Module):  # type: ignore[misc]
    """ids (texts, 8) -> (texts, 12), one vector of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(len(WORDS), 12), nn.Linear(8 * 12, 12)

    def forward(self, ids: Any) -> Any:
        return self.mix(self.table(ids).flatten(1)).tanh()


class OfSentence(nn.Module):  # type: ignore[misc]
    """Noise and a text's vector, joined as in GAN-CLS (arXiv 1605.05396)."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(12, 6)
        self.draw = dcgan(10 + 6, 4, 3, ups=2)

    def forward(self, latents: Any, sentence: Any) -> Any:
        narrow = functional.leaky_relu(self.narrow(sentence), 0.2)
        return self.draw(torch.cat([latents, narrow], dim=1)[:, :, None, None])


class Reader(nn.Module):  # type: ignore[misc]
    """ids and mask (texts, tokens) -> a vector of the text (texts, 12), one of each word (texts, 12, tokens), and where
    none is: as AttnGAN's encoder (arXiv 1711.10485) gives them."""

    def __init__(self, careful: bool = True) -> None:
        super().__init__()
        self.table, self.mix, self.careful = nn.Embedding(len(WORDS), 12), nn.Conv1d(12, 12, 3, padding=1), careful

    def forward(self, ids: Any, mask: Any) -> Any:
        own = mask[:, None].float() if self.careful else 1
        of_words = self.mix(self.table(ids).transpose(1, 2) * own).tanh() * own
        return of_words.sum(dim=2) / (own * torch.ones_like(of_words)).sum(dim=2), of_words, ~mask


class OfWords(nn.Module):  # type: ignore[misc]
    """Of a class too; each place of the picture looks at the words."""

    def __init__(self) -> None:
        super().__init__()
        self.of_class, self.start = nn.Embedding(2, 8), nn.Linear(8 + 12, 12 * 4 * 4)
        self.draw = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(24, 3, 3, padding=1), nn.Tanh())

    def forward(self, latents: Any, labels: Any, sentence: Any, of_words: Any, nothing: Any) -> Any:
        states = self.start(torch.cat([latents * self.of_class(labels), sentence], dim=1)).unflatten(1, (12, 4, 4))
        scores = (states.flatten(2).transpose(1, 2) @ of_words).masked_fill(nothing[:, None], float("-inf"))
        seen = (scores.softmax(dim=2) @ of_words.transpose(1, 2)).transpose(1, 2).unflatten(2, (4, 4))
        return self.draw(torch.cat([states, seen], dim=1))


def test_texts(tmp_path: Path) -> None:
    """Each text of a list has its own pictures, each result its own noise."""
    torch.manual_seed(0)
    encoder, spec = Sentence().eval(), Tokenize(file="words.json", length=8, pad=0)
    module = settled(OfSentence(), torch.randn(32, 10), torch.randn(32, 12))
    text = TextEncoder(encoder, (words().to_str().encode(), spec), EXAMPLES)
    pipeline = exported(generator(module, (10,), text=text), tmp_path)
    assert [check.what for check in replay(pipeline)] == [
        "text_encoder 0: context_0",
        "generator 0: pixels",
        "seed: pixels",
    ]
    found = pipeline.generate(PROMPTS, seed=3, num_images=2).images
    with torch.no_grad():
        vectors = encoder(ids(PROMPTS, 8)).repeat_interleave(2, dim=0)
        same(found, module(torch.cat([noise(3 + place, 10) for place in range(8)]), vectors))
    assert np.array_equal(np.asarray(pipeline.generate(PROMPTS[1], seed=5).image), np.asarray(found[2]))
    again = pipeline.generate(PROMPTS[:2], seed=3).images
    assert not np.array_equal(np.asarray(again[1]), np.asarray(pipeline.generate(PROMPTS[0], seed=4).image))
    with pytest.raises(RequestError, match="prompt is missing"):
        pipeline.generate(seed=3)


def test_words_and_classes(tmp_path: Path) -> None:
    """Texts are as long as they are, and the same alone as among longer ones."""
    torch.manual_seed(0)
    encoder, module = Reader().eval(), OfWords().eval()
    spec = Tokenize(file="words.json", length=9, pad=0, mask="mask")
    text = TextEncoder(encoder, (words().to_str().encode(), spec), EXAMPLES)
    pipeline = exported(generator(module, (8,), ("young", "old"), text), tmp_path)
    assert all(check.passed for check in replay(pipeline))
    assert pipeline.manifest.graphs["generator"].inputs["context_1"].shape == ("rows", 12, "tokens")
    drawn = {}
    for number, label in enumerate(("young", "old")):
        drawn[label] = pipeline.generate(PROMPTS, label=label, seed=11).images
        with torch.no_grad():
            for place, prompt in enumerate(PROMPTS):
                alone = ids([prompt])
                context = encoder(alone, torch.ones_like(alone, dtype=torch.bool))
                same([drawn[label][place]], module(noise(11 + place, 8), torch.tensor([number]), *context))
    assert not np.array_equal(np.asarray(drawn["old"][0]), np.asarray(drawn["young"][0]))
    with pytest.raises(RequestError, match="the text has 10 tokens, at most 9 are allowed"):
        pipeline.generate("red " * 10)


def test_texts_that_are_refused() -> None:
    torch.manual_seed(0)
    content, module = words().to_str().encode(), OfWords().eval()
    masked = Tokenize(file="words.json", length=9, pad=0, mask="mask")

    def refused(message: str, **other: Any) -> None:
        given = {"module": Reader().eval(), "tokenizer": (content, masked), "examples": EXAMPLES} | other
        with pytest.raises(ExportError, match=message):
            generator(module, (8,), ("young", "old"), TextEncoder(**given))

    refused(r"text_encoder: examples is \(\), wanted texts", examples=())
    refused("text_encoder: examples is 'a bird', wanted texts", examples="a bird")
    refused("text_encoder: of the examples, the text has 10 tokens, at most 9", examples=("red " * 10,))
    refused("all examples have the same number of tokens", examples=("a bird", "red wings"))
    refused("'a red bird' becomes another picture among longer texts", module=Reader(careful=False).eval())
    refused(
        r"text_encoder: fails with prompt_ids \(3, 7\) and mask \(3, 7\): TypeError", module=nn.Embedding(9, 12).eval()
    )
    refused("text_encoder: gives dict, wanted a tensor", module=OfDict().eval())
    refused("tokenizer: not a tokenizer file", tokenizer=(b"{}", masked))
    refused(
        r"generator: fails with latents \(2, 8\) and labels \(2,\) and context_0 \(2, 12\)",
        module=First(Reader()).eval(),
    )
    refused("text_encoder: it is in training mode", module=Reader().train())


class First(nn.Module):  # type: ignore[misc]
    """The first of what a module gives."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Any) -> Any:
        return self.module(*given)[0]


class OfDict(nn.Module):  # type: ignore[misc]
    """Of a kind that is not supported."""

    def forward(self, *given: Any) -> Any:
        return dict(enumerate(given))


def test_what_is_refused(tmp_path: Path) -> None:
    module = dcgan(4, 2, 3, ups=1).eval()
    with pytest.raises(ExportError, match=r"generator: fails with latents \(2, 5, 1, 1\): RuntimeError"):
        generator(module, (5, 1, 1))
    with pytest.raises(ExportError, match=r"gives torch.float32\(2, 4\) for latents \(2, 4\), wanted float32\(2, 3"):
        generator(nn.Identity().eval(), (4,))
    with pytest.raises(ExportError, match="two have the same name"):
        generator(module, (4, 1, 1), ("a", "a"))
    with pytest.raises(ExportError, match="training mode"):
        exported(generator(module.train(), (4, 1, 1)), tmp_path)


# ---------------------------------------------------------------- trained weights


FACES = """
from pathlib import Path

import torch
from gan_face_generate.models import Generator
from mmrt.export import generator


def recipe():
    weights = torch.load(Path(__file__).parent / "gan_face_generate/weights.tar", map_location="cpu", weights_only=True)
    model = Generator(0, 3, 100, 64)
    model.load_state_dict(weights["netG_state_dict"])
    return generator(model.eval(), latents=(100, 1, 1))
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained DCGAN, from PyPI."""
    folder = tmp_path_factory.mktemp("faces")
    command = ["pip", "download", "-q", "--no-deps", "--timeout", "10", "--retries", "0", "-d", str(folder)]
    try:
        subprocess.run(
            [sys.executable, "-m", *command, "gan-face-generate==1.1.1"], check=True, capture_output=True, timeout=60
        )
    except (subprocess.SubprocessError, OSError):
        pytest.skip("gan-face-generate cannot be downloaded")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    (folder / "my_model.py").write_text(FACES)
    return folder


def test_a_trained_generator(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in export(f"{faces / 'my_model.py'}:recipe", tmp_path / "faces.mmrt"):
        pass
    monkeypatch.syspath_prepend(str(faces))
    from gan_face_generate.models import Generator

    module = Generator(0, 3, 100, 64)
    weights = torch.load(faces / "gan_face_generate" / "weights.tar", map_location="cpu", weights_only=True)
    module.load_state_dict(weights["netG_state_dict"])
    pipeline = mmrt.load(tmp_path / "faces.mmrt", threads=1)
    found = pipeline.generate(seed=0, num_images=9).images
    with torch.no_grad():
        same(found, module.eval()(torch.cat([noise(place, 100, 1, 1) for place in range(9)])))
