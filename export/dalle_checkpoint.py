"""A dalle-pytorch checkpoint: its model in torch, found whole, and its tokenizer as a file of `tokenizers`."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch

from mmrt.export.checkpoint import Checkpoint
from mmrt.export.dalle_library import dalle_pytorch
from mmrt.export.dalle_vae import new_vae
from mmrt.export.quiet import quiet
from mmrt.runtime.errors import ExportError

_ATTENTION = ("full", "axial_row", "axial_col", "conv_like")
_CLIP_TOKENS = 49408  # of the tokenizer that dalle-pytorch brings


def load(checkpoint: Checkpoint) -> Any:
    """dalle-pytorch's `DALLE` with all its weights, in fp32 and eval mode. Raises `ExportError`."""
    where = checkpoint.pickle or checkpoint.path / "dalle.json"
    saved, weights = _read_pickle(where) if checkpoint.pickle else _read_folder(checkpoint)
    options = saved.get("hparams")
    if not isinstance(options, dict):
        raise ExportError(f"{where}: has no hparams, which dalle-pytorch saves")
    _check(where, options)
    library = dalle_pytorch()
    try:
        with quiet():
            model = library.DALLE(vae=new_vae(where, checkpoint.path, saved), **options)
    except ExportError:
        raise
    except Exception as error:  # of wrong parameters, whatever comes
        raise ExportError(f"{where}: dalle-pytorch makes no model of it: {type(error).__name__}: {error}") from error
    _fill(where, model, weights)
    return model.eval().requires_grad_(False)


def _read_folder(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for file in checkpoint.weights(".").files:
        weights |= load_file(file)
    return checkpoint.index, weights


def _read_pickle(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise ExportError(f"{file}: not weights that can be read without running code: {_line(error)}") from None
    if not isinstance(saved, dict) or not isinstance(saved.get("weights"), dict):
        raise ExportError(f"{file}: has no weights, which dalle-pytorch saves beside hparams and vae_params")
    return saved, saved["weights"]


def _check(where: Path, options: Mapping[str, Any]) -> None:
    """That the model's parts are such as `Transformer` knows."""
    kinds = options.get("attn_types") or ("full",)
    for kind in (kinds,) if isinstance(kinds, str) else kinds:
        if kind not in _ATTENTION:
            raise ExportError(f"{where}: attn_types has {kind!r}, supported are {', '.join(_ATTENTION)}")
    if options.get("shift_tokens", True) and options.get("dim", 0) % 4:
        raise ExportError(f"{where}: dim is {options['dim']}, which shift_tokens cannot divide by 4")


def _fill(where: Path, model: Any, weights: Mapping[str, Any]) -> None:
    """Put the weights in. Those that are shared may be there once; positions have had another name."""
    given = {
        re.sub(r"^(image_pos_emb\.weights)[._](?:weights_)?(\d)$", r"\1.\2", name): w for name, w in weights.items()
    }
    wanted = model.state_dict()
    for name in wanted.keys() - given.keys():
        if (twin := re.sub(r"^(text|image)_emb\.linear\.", "to_logits.1.", name)) in given:
            given[name] = given[twin]
    if missing := sorted(wanted.keys() - given.keys()):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ExportError(f"{where}: weights are missing: {', '.join(missing[:3])}{more}")
    for name, own in wanted.items():
        if given[name].shape != own.shape:
            raise ExportError(f"{where}: {name} is {tuple(given[name].shape)}, wanted {tuple(own.shape)}")
        if not torch.isfinite(given[name]).all():
            raise ExportError(f"{where}: {name} holds NaN or infinite numbers")
    model.load_state_dict({name: given[name].to(own.dtype) for name, own in wanted.items()})


def load_tokenizer(checkpoint: Checkpoint, model: Any) -> tokenizers.Tokenizer:
    """`tokenizer.json` beside the weights, without special tokens; else, if the vocabulary has its size, the one that
    dalle-pytorch brings. Raises `ExportError`."""
    file, room = checkpoint.path / "tokenizer.json", model.num_text_tokens - model.text_seq_len
    if file.is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # all that the library raises
            raise ExportError(f"{file}: not a tokenizer: {_line(error)}") from None
    elif room == _CLIP_TOKENS:
        tokenizer = clip_tokenizer()
    else:
        raise ExportError(f"{file}: is missing, and {room} text tokens are not those of dalle-pytorch's own tokenizer")
    tokenizer.post_processor = None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if (size := max(tokenizer.get_vocab().values(), default=0) + 1) > room:
        raise ExportError(f"{file}: has {size} tokens, the model's num_text_tokens is {room}")
    return tokenizer


def clip_tokenizer() -> tokenizers.Tokenizer:
    """dalle-pytorch's `SimpleTokenizer`, which is CLIP's, from the merges that it brings.

    It repairs broken Unicode and HTML entities, which is left out here.
    """
    folder = Path(dalle_pytorch().__file__).parent
    lines = (folder / "data" / "bpe_simple_vocab_16e6.txt").read_text(encoding="utf8").split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : _CLIP_TOKENS - 512 - 2 + 1])]
    letters = [_letter(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256), *_HIDDEN)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    made.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    words_of = tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(words_of, behavior="removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return made


_HIDDEN = (*range(33), *range(127, 161), 173)  # bytes that GPT-2's byte-level BPE writes as other letters


def _letter(byte: int) -> str:
    return chr(256 + _HIDDEN.index(byte)) if byte in _HIDDEN else chr(byte)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
