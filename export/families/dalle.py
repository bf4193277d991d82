"""Texts to pictures by way of codes: dalle-pytorch's `DALLE` (arXiv 2102.12092) with its own `DiscreteVAE` or a VQGAN.

A checkpoint is what dalle-pytorch saves (`dalle.pt`), or a folder with `model.safetensors` and `dalle.json`, which
holds `hparams`, `vae_params` and `vae_class_name` as that file does. Beside it lies a VQGAN's configuration in YAML.

In the loop the codes of pictures are the ids 0 to n - 1, as nothing else is written; text ids are n and above.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import tokenizers
import torch
from torch.nn import functional

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.dalle_checkpoint import load, load_tokenizer
from mmrt.export.dalle_transformer import Transformer
from mmrt.export.dalle_vae import codes_of, pictures_of
from mmrt.export.decoder import OPSET
from mmrt.export.diffusers_reference import test_picture
from mmrt.export.quiet import quiet
from mmrt.export.recipe import Golden, Graph, Recipe
from mmrt.export.transformers_reference import margins
from mmrt.runtime import manifest as m
from mmrt.runtime.arrays import AnyArray
from mmrt.runtime.receipt import Case

CLASSES = ("dalle-pytorch",)
_TOKENIZER = "tokenizers/prompt.json"
_THRESHOLD = 0.5  # dalle-pytorch's `filter_thres`: the share of all tokens, texts' too, that are never drawn
_PRIMED = 0.4375  # the share of codes that are taken of a given picture; dalle-pytorch's default
_SHORT = 256  # codes up to which the receipts hold pictures that dalle-pytorch makes without a cache
_CLOSE = 1e-4  # logits that rounding may bring into another order
_PROMPTS = (  # the first that are not so close are in the receipts
    ("a red heart", "two blue cars in the rain"),
    ("green tree", "a cat"),
    ("house", "a yellow flower"),
    ("the sun above the sea", "dog"),
)


def recipe(checkpoint: Checkpoint) -> Recipe:
    """Load the checkpoint and say how it becomes a bundle. Raises `ExportError`."""
    model = load(checkpoint)
    vae, text, codes = model.vae, model.text_seq_len, model.image_seq_len
    given = int(_PRIMED * codes)
    tokenizer = load_tokenizer(checkpoint, model)
    transformer = Transformer(model)
    side = vae.image_size
    kept = max(int((1 - _THRESHOLD) * model.total_tokens), 1)
    return Recipe(
        task="text-to-image",
        family="dalle",
        inputs={
            "prompt": m.Text(
                tokenize={"text_ids": m.Tokenize(file=_TOKENIZER, length=text, pad=0)}, negative="negative_prompt"
            ),
            "negative_prompt": m.Text(default=""),
            "image": m.Image(array="picture", fit=m.Fit(width=side, height=side, resample="bicubic", shortest=side)),
            "guidance": m.Float(default=1.0, min=1.0, max=100.0),
            "temperature": m.Float(default=1.0, min=0.0, max=100.0),
            "top_k": m.Int(default=kept if kept < model.num_image_tokens else 0, min=0, max=2**31),
            "top_p": m.Float(default=1.0, min=0.0, max=1.0),
            "min_p": m.Float(default=0.0, min=0.0, max=1.0),
            "size": m.Size(default=(side, side), multiple=side, max=side),
            "num_images": m.Count(max=64),
            "seed": m.Seed(),
        },
        outputs={"image": m.ImageOutput(source="pixels")},
        graphs=_graphs(model, transformer, given),
        program=(
            m.Once(graphs=("prompt",)),
            m.Once(graphs=("encoder", "prime"), when="image"),
            m.Autoregress(
                graphs=("transformer",),
                caches={name: f"new_{name}" for name in transformer.caches},
                limit=text + 1 + codes,
                prompt="prompt_tokens",
                pad=0,
                ends=(),
                options={"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"},
                guidance=m.Guidance(kind="classifier-free", scale="guidance"),
            ),
            m.Once(graphs=("codes",)),
            m.Once(graphs=("join",), when="image"),
            m.Once(graphs=("decoder",)),
        ),
        reference=lambda: _reference(model, transformer, tokenizer, given),
        components=(".",),
        files={_TOKENIZER: tokenizer.to_str(pretty=False).encode()},
        notes=(
            f"A picture is {codes} codes, each one of {model.num_image_tokens}, drawn one after the other. Of a given "
            f"`image` the first {given} codes are taken, which are its upper part.",
        ),
    )


# ---------------------------------------------------------------- the graphs


def _graphs(model: Any, transformer: Transformer, given: int) -> dict[str, Graph]:
    size, text, total = model.vae.image_size, model.text_seq_len, model.image_seq_len
    ids = torch.zeros(2, text, dtype=torch.int64)
    some, rest, whole = (torch.zeros(2, count, dtype=torch.int64) for count in (given, total - given, total))
    past = transformer.empty(rows=2, capacity=32)
    new = tuple(f"new_{name}" for name in past)
    rows, grown = {0: "rows"}, {0: "rows", 2: "capacity"}
    return {
        "prompt": Graph(Prompt(model), {"text_ids": ids}, ("prompt_tokens",), _rows("text_ids", "prompt_tokens")),
        "encoder": Graph(
            Encoder(model.vae, given),
            {"picture": torch.zeros(2, size, size, 3, dtype=torch.uint8)},
            ("given_codes", "kept_codes"),
            _rows("picture", "given_codes", "kept_codes"),
        ),
        "prime": Graph(
            Prime(model),
            {"text_ids": ids, "given_codes": some},
            ("prompt_tokens",),
            _rows("text_ids", "given_codes", "prompt_tokens"),
        ),
        "transformer": Graph(
            transformer,
            {"tokens": ids[:, :3].clone(), "positions": torch.zeros(2, dtype=torch.int64), **past},
            ("logits", *new),
            {
                "tokens": {0: "rows", 1: "sequence"},
                "positions": rows,
                "logits": rows,
                **dict.fromkeys((*past, *new), grown),
            },
            opset=OPSET,
        ),
        "codes": Graph(
            Codes(total), {"sequences": rest}, ("codes",), {"sequences": {0: "rows", 1: "sequence"}, "codes": rows}
        ),
        "join": Graph(
            Join(), {"kept_codes": some, "sequences": rest}, ("codes",), _rows("kept_codes", "sequences", "codes")
        ),
        "decoder": Graph(Decoder(model.vae), {"codes": whole}, ("pixels",), _rows("codes", "pixels")),
    }


def _rows(*names: str) -> dict[str, dict[int, str]]:
    return {name: {0: "rows"} for name in names}


class Prompt(torch.nn.Module):  # type: ignore[misc]
    """text_ids int64 (rows, length), padded with 0 -> prompt_tokens (rows, 1 + length): a first token and, in the place
    of each padding, one that belongs to the place, all above the codes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.codes, self.length = model.num_image_tokens, model.text_seq_len
        self.padding = model.num_text_tokens - model.text_seq_len

    def forward(self, text_ids: Any) -> Any:
        own = torch.where(text_ids == 0, self.padding + torch.arange(self.length), text_ids)
        return self.codes + functional.pad(own, (1, 0))


class Prime(torch.nn.Module):  # type: ignore[misc]
    """text_ids (rows, length), given_codes (rows, given) -> prompt_tokens (rows, 1 + length + given)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.prompt = Prompt(model)

    def forward(self, text_ids: Any, given_codes: Any) -> Any:
        return torch.cat([self.prompt(text_ids), given_codes], dim=1)


class Codes(torch.nn.Module):  # type: ignore[misc]
    """sequences int64 (rows, sequence) -> codes (rows, total), filled up where some were given, which `Join` adds."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def forward(self, sequences: Any) -> Any:
        zeros = torch.zeros(sequences.shape[0], self.total, dtype=torch.int64)
        return torch.cat([sequences, zeros], dim=1)[:, : self.total]


class Join(torch.nn.Module):  # type: ignore[misc]
    """kept_codes (rows, given), sequences (rows, rest) -> codes (rows, total)."""

    def forward(self, kept_codes: Any, sequences: Any) -> Any:
        return torch.cat([kept_codes, sequences], dim=1)


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """picture uint8 (pictures, height, width, 3) -> its first codes, int64 (pictures, given), twice.

    Once for the prompts, which have unconditional rows too where there is guidance, and once for the pictures.
    """

    def __init__(self, vae: Any, given: int) -> None:
        super().__init__()
        self.vae, self.given = vae, given

    def forward(self, picture: Any) -> Any:
        codes = codes_of(self.vae, picture)[:, : self.given]
        return codes, codes.clone()


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """codes int64 (rows, total) -> pixels uint8 (rows, height, width, 3)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, codes: Any) -> Any:
        return pictures_of(self.vae, codes)


# ---------------------------------------------------------------- the source model's own answers


def _reference(model: Any, transformer: Transformer, tokenizer: tokenizers.Tokenizer, given: int) -> Golden:
    """dalle-pytorch's most likely codes, without and with guidance, and after the first codes of a picture."""
    size = model.vae.image_size
    picture = test_picture(size, size)
    pictures = np.stack([picture, picture[::-1, :, ::-1]])
    arrays: dict[str, AnyArray] = {}
    cases = []
    with quiet(), torch.no_grad():
        first = codes_of(model.vae, torch.from_numpy(pictures))[:, :given]
        runs = {"greedy": (1.0, first[:, :0])}
        if model.image_seq_len <= _SHORT or _cached(model):
            runs["guided"] = 3.0, first[:, :0]
        if model.image_seq_len <= _SHORT:
            runs["primed"] = 1.0, first
            arrays["run/primed/in/image"] = pictures
        for name, (scale, start) in runs.items():
            for prompts in _PROMPTS:
                text = text_ids(model, tokenizer, prompts)
                codes, scores = most_likely(model, text, scale, start)
                best = torch.stack(scores).topk(2).values
                if (best[..., 0] - best[..., 1]).min() > _CLOSE:
                    break
            arrays[f"run/{name}/out/sequences"] = codes[:, start.shape[1] :].numpy()
            arrays[f"run/{name}/margin/sequences"] = margins(scores, scores)
            arrays[f"run/{name}/out/pixels"] = pictures_of(model.vae, codes).numpy()
            cases.append(Case(name=name, request={"prompt": list(prompts), "guidance": scale, "temperature": 0.0}))
        arrays |= {"graph/encoder/0/in/picture": pictures, "graph/encoder/0/out/given_codes": first.numpy()}
        arrays |= {"graph/decoder/0/in/codes": codes.numpy()}
        arrays |= {"graph/decoder/0/out/pixels": arrays[f"run/{name}/out/pixels"]}
        arrays |= _call(model, transformer, text, codes)
    source = f"dalle-pytorch {version('dalle-pytorch')}, torch {torch.__version__}, fp32 on cpu"
    return Golden(source, {name: np.ascontiguousarray(array) for name, array in arrays.items()}, tuple(cases))


def text_ids(model: Any, tokenizer: tokenizers.Tokenizer, prompts: Sequence[str]) -> Any:
    """int64 (prompts, length), padded with 0 as dalle-pytorch's tokenizers do."""
    ids = [tokenizer.encode(prompt).ids[: model.text_seq_len] for prompt in prompts]
    return torch.tensor([row + [0] * (model.text_seq_len - len(row)) for row in ids])


def most_likely(model: Any, text: Any, scale: float, codes: Any) -> tuple[Any, list[Any]]:
    """int64 (rows, codes): what dalle-pytorch's own forward pass makes the most likely, code by code, after `codes`;
    and for each of these the logits of all, (rows, codebook).

    Its `generate_images` is not used: with `cond_scale` that overwrites the text in its first step, or, with
    `use_cache`, gives what the conditional rows left in the cache to the unconditional ones. Caches are here kept
    apart, and used where dalle-pytorch's are right: its layers that are not full attention share one, and its
    shifted tokens are others after codes that were there before the first call.
    """
    caches: tuple[Any, Any] = ({}, {}) if _cached(model) and codes.shape[1] == 0 else (None, None)
    scores = []
    while codes.shape[1] < model.image_seq_len:
        logits = model(text.clone(), codes, cache=caches[0])[:, -1]
        if scale != 1:
            blank = model(text.clone(), codes, null_cond_prob=1.0, cache=caches[1])[:, -1]
            logits = blank + (logits - blank) * scale
        scores.append(logits[:, model.num_text_tokens :])
        codes = torch.cat([codes, scores[-1].argmax(dim=1, keepdim=True)], dim=1)
    return codes, scores


def _cached(model: Any) -> bool:
    """Whether dalle-pytorch's caches are right."""
    return not any(type(module).__name__ == "NonCached" for module in model.modules())


def _call(model: Any, transformer: Transformer, text: Any, codes: Any) -> dict[str, AnyArray]:
    """The transformer's call with a text and some codes, from the source's logits."""
    some = codes[:, : model.image_seq_len // 2]
    logits = model(text.clone(), some)[:, -1, model.num_text_tokens :]
    tokens = Prime(model)(text, some)
    capacity = 1 << int(tokens.shape[1] - 1).bit_length()
    inputs = {"tokens": tokens, "positions": torch.zeros(len(text), dtype=torch.int64)}
    inputs |= transformer.empty(len(text), capacity)
    found = {f"graph/transformer/0/in/{name}": array.numpy() for name, array in inputs.items()}
    return found | {"graph/transformer/0/out/logits": logits.numpy()}
