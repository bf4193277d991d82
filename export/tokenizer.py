"""A transformers tokenizer as files of the `tokenizers` library, proved to give the same ids and the same texts."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tokenizers

from mmrt.export import sentencepiece
from mmrt.export.checkpoint import Checkpoint
from mmrt.export.quiet import quiet
from mmrt.runtime.errors import BundleError, ExportError
from mmrt.runtime.manifest import Cleaning, TextOutput, Token, Tokenize
from mmrt.runtime.tokenizer import Detokenizer, Tokenizer

PROBES = (
    "",
    " ",
    "a red heart",
    "红心，一辆蓝色的车",  # noqa: RUF001
    "👩‍👩‍👧 ❤️ 🇨🇳",
    "tabs\tlines\r\n\x00\x07 and \u200b\ufeff controls",
    "<|endoftext|> in the middle <|startoftext|>",
    "İstanbul Ünïcödé e\u0301 ﬁ ½ Ⅷ ß",
    "don't you'll 12345 3.14!!! ...---...",
    "Ωμέγα עברית العربية हिन्दी ไทย 한국어 日本語",
    "x" * 400,
    "many words " * 100,
    "\U0001d518\U0001d52b\U0001d526 \U0010ffff \ue000",
    "  blanks  at both  ends \u3000 ",
    "e\u0302\u0301 ﬁ\u0301 \u1112\u1161\u11ab \u09c7\u09be Å\u0323",
    ">>deu<< a language first, >>deu<< and in the middle",
    "a . b , c ? d ! n't ' s 've",
)
_SPM_ONLY = ("MarianTokenizer", "M2M100Tokenizer")
_LONGEST = 2**20
_MARK = "\ue0f0text\ue0f0"  # stands for a text in a chat template
_ROW = 64  # tokens that are decoded together for a comparison
_NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_OPEN_CLIP_CLEANING: dict[str, tuple[Cleaning, ...]] = {  # by the function that does it
    "_clean_lower": ("mend", "entities", "blanks", "lower"),
    "_clean_whitespace": ("mend", "entities", "blanks"),
    "_clean_canonicalize": ("mend", "entities", "underscores", "punctuation", "lower", "blanks"),
}
_Read = TypeVar("_Read")


def tokenizer_file(tokenizer: Any, path: str) -> tuple[bytes, Tokenize]:
    """The content of the file at `path` in the bundle, and the manifest's entry for it: texts all of one length.

    To SiglipTokenizer, which takes punctuation away, special tokens that a text spells out are text like any other.
    Raises `ExportError` where the tokenizer cannot be said so, or gives other ids for one of `PROBES`.
    """
    spec = Tokenize(file=path, length=tokenizer.model_max_length, pad=tokenizer.pad_token_id)
    if type(tokenizer).__name__ == "SiglipTokenizer":
        lower: tuple[Cleaning, ...] = ("lower",) if tokenizer.do_lower_case else ()
        cleaning: tuple[Cleaning, ...] = ("pieces", *lower, "punctuation", "blanks")
        spec = msgspec.structs.replace(spec, clean=cleaning, after=(tokenizer.eos_token_id,))
        content = serialized(sentencepiece.source(tokenizer, codes=False))
    else:
        content = serialized(_fast(tokenizer))
    if tokenizer.padding_side != "right":
        raise ExportError(f"tokenizer: padding_side is {tokenizer.padding_side!r}, wanted 'right'")
    ours = read_back(content, lambda file: Tokenizer(file, spec))
    with quiet():
        found = ours(PROBES)[0].tolist()
        wanted = tokenizer(list(PROBES), padding="max_length", max_length=spec.length, truncation=True)["input_ids"]
    same_ids(PROBES, found, wanted)
    return content, spec


def open_clip_tokenizer(tokenizer: Any, path: str, mask: str | None) -> tuple[bytes, Tokenize]:
    """The same for open_clip's SimpleTokenizer; with a `mask`, texts are as long as they are, and none is cut.

    Raises `ExportError` where the tokenizer cannot be said so, or gives other ids for one of `PROBES`.
    """
    cleaning = _OPEN_CLIP_CLEANING.get(getattr(tokenizer.clean_fn, "__name__", ""))
    if type(tokenizer).__name__ != "SimpleTokenizer" or cleaning is None or tokenizer.reduction_fn is not None:
        raise ExportError("tokenizer: open_clip makes one of settings that are not supported")
    model = tokenizers.models.BPE(tokenizer.encoder, list(tokenizer.bpe_ranks), end_of_word_suffix="</w>")
    fast = tokenizers.Tokenizer(model)
    words = tokenizers.Regex(rf"(?i:{tokenizer.pat.pattern})")
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(words, "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [text for text, token in tokenizer.encoder.items() if token in tokenizer.all_special_ids]
    fast.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True) for text in special])
    before, after = (tokenizer.sot_token_id,), (tokenizer.eot_token_id,)
    spec = Tokenize(
        file=path, length=tokenizer.context_length, pad=0, mask=mask, before=before, after=after, clean=cleaning
    )
    content = serialized(fast)
    roomy = msgspec.structs.replace(spec, length=_LONGEST, mask="mask")
    with quiet():
        found, own = read_back(content, lambda file: Tokenizer(file, roomy))(PROBES)
        wanted = [[*before, *tokenizer.encode(text), *after] for text in PROBES]
    same_ids(PROBES, [row[each].tolist() for row, each in zip(found, own, strict=True)], wanted, "open_clip")
    return content, spec


def languages(tokenizer: Any) -> dict[str, int]:
    """The languages of a multilingual tokenizer, as a user names them, and their tokens; none for other tokenizers."""
    if codes := getattr(tokenizer, "supported_language_codes", None):  # Marian's, such as ">>deu<<"
        return {code[2:-2]: tokenizer.encoder[code] for code in sorted(codes)}
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return {}
    found = getattr(tokenizer, "lang_code_to_id", None) or {  # mBART, mBART-50, M2M100; else NLLB
        code: token for code, token in tokenizer.get_added_vocab().items() if _NLLB_CODE.fullmatch(code)
    }
    return {str(code): int(token) for code, token in sorted(found.items())}


def source_tokenizer(
    tokenizer: Any, path: str, length: int, mask: str, language: str | None = None
) -> tuple[bytes, Tokenize]:
    """The content of the file at `path`, and the manifest's entry for it: texts up to `length` tokens, with a mask.

    language: the name of the input that chooses one of `languages(tokenizer)`; its token stands before or after the
    text. It is the source's language, but the target's for Marian. Without, a tokenizer keeps to the language that it
    is set to, and Marian to what a text says first, `>>deu<<`. Raises `ExportError` where the tokenizer cannot be said
    so, or gives other ids for one of `PROBES`.
    """
    known = languages(tokenizer) if language is not None else {}
    if language is not None and not known:
        raise ExportError(f"tokenizer: {type(tokenizer).__name__} has no languages to choose from")
    spm_only = type(tokenizer).__name__ in _SPM_ONLY
    fast = sentencepiece.source(tokenizer, codes=language is None) if spm_only else _fast(tokenizer)
    before, after = _around(tokenizer, known, language)
    if before or after:
        fast.post_processor = tokenizers.processors.TemplateProcessing(single="$A")
    pad = next((each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id) if each is not None), 0)
    spec = Tokenize(file=path, length=length, pad=pad, mask=mask, before=before, after=after)
    content = serialized(fast)
    ours = read_back(content, lambda file: Tokenizer(file, msgspec.structs.replace(spec, length=_LONGEST)))
    _prove_source(tokenizer, ours, known, language or "")
    return content, spec


def chat_words(checkpoint: Checkpoint, tokenizer: Any, content: list[dict[str, str]]) -> tuple[str, str]:
    """What the checkpoint's chat template puts before and after the text of a user's only message.

    content: the message's parts, in transformers' words; that of the type "text" is left empty. Raises `ExportError`.
    """
    template, file = tokenizer.chat_template, checkpoint.path / "chat_template.jinja"
    if template is None and file.is_file():
        template = file.read_text(encoding="utf-8")
    elif template is None and file.with_suffix(".json").is_file():
        template = checkpoint.json("chat_template.json").get("chat_template")
    if not isinstance(template, str):
        raise ExportError(f"{checkpoint.path}: has no chat template, in chat_template.jinja or tokenizer_config.json")
    parts = [{**part, "text": _MARK} if part["type"] == "text" else part for part in content]
    try:
        words: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # templates are programs
        raise ExportError(f"{checkpoint.path}: the chat template fails: {error}") from error
    if words.count(_MARK) != 1:
        raise ExportError(f"{checkpoint.path}: the chat template does not keep a text as it is")
    before, after = words.split(_MARK)
    return before, after


def prompt_tokenizer(
    tokenizer: Any, path: str, spec: Tokenize, words: tuple[str, str], special: bool
) -> tuple[bytes, Tokenize]:
    """The content of the file at `path`, and `spec` completed, for prompts that are `words` around a text.

    special: whether the tokenizer adds its own special tokens. What `spec` has before and after the text stands outside
    of them. Raises `ExportError` where one of `PROBES` gives other ids than transformers.
    """
    fast = _fast(tokenizer)
    bare, whole = (tokenizer(f"{words[0]}a{words[1]}", add_special_tokens=own)["input_ids"] for own in (False, special))
    start = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    before, after = tuple(whole[:start]), tuple(whole[start + len(bare) :])
    fast.post_processor = tokenizers.processors.TemplateProcessing(single="$A")
    found = msgspec.structs.replace(
        spec, file=path, before=(*before, *spec.before), after=(*spec.after, *after), prefix=words[0], suffix=words[1]
    )
    content = serialized(fast)
    alone = msgspec.structs.replace(found, length=_LONGEST, before=before, after=after, mask="mask")
    ours = read_back(content, lambda file: Tokenizer(file, alone))
    with quiet():
        ids, mask = ours(PROBES)
        wanted = [tokenizer(words[0] + text + words[1], add_special_tokens=special)["input_ids"] for text in PROBES]
    same_ids(PROBES, [row[own].tolist() for row, own in zip(ids, mask, strict=True)], wanted)
    return content, found


def target_tokenizer(tokenizer: Any, path: str, source: str = "sequences") -> tuple[bytes, TextOutput]:
    """The content of the file at `path`, and the manifest's entry for texts made with it of the ids `source`.

    Raises `ExportError` where the tokenizer cannot be said so, or decodes any of its tokens otherwise.
    """
    fast = sentencepiece.target(tokenizer) if type(tokenizer).__name__ in _SPM_ONLY else _fast(tokenizer)
    clean = bool(tokenizer.clean_up_tokenization_spaces)
    if type(fast.model).__name__ == "BPE":  # transformers 5 does not clean these, if not told to by all means
        clean &= getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    silent = _timestamps(tokenizer)
    content = _silenced(serialized(fast), silent)
    _prove_target(tokenizer, read_back(content, lambda file: Detokenizer(file, clean)), silent)
    return content, TextOutput(source=source, file=path, clean=clean)


def _timestamps(tokenizer: Any) -> set[str]:
    """Whisper's tokens for times, which transformers takes out of the text: here they never get into it."""
    if (pattern := getattr(tokenizer, "timestamp_pat", None)) is None:
        return set()
    return {token for token in tokenizer.get_added_vocab() if pattern.fullmatch(token)}


def _silenced(content: bytes, silent: set[str]) -> bytes:
    if not silent:
        return content
    file = json.loads(content)
    for token in file["added_tokens"]:
        token["special"] |= token["content"] in silent
    return json.dumps(file, ensure_ascii=False, separators=(",", ":")).encode()


def _around(
    tokenizer: Any, known: Mapping[str, int], language: str | None
) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    """What stands before and after a text, where the file does not say so itself."""
    if hasattr(tokenizer, "spm_source"):
        return () if language is None else (language,), (tokenizer.eos_token_id,)
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return (), ()
    around = tokenizer.prefix_tokens, tokenizer.suffix_tokens
    if language is None:
        return tuple(around[0]), tuple(around[1])
    present = known.get(tokenizer.src_lang)
    before, after = (tuple(language if token == present else token for token in tokens) for tokens in around)
    if language not in before + after:
        raise ExportError(f"tokenizer: no token for the source language {tokenizer.src_lang!r} stands around a text")
    return before, after


def _fast(tokenizer: Any) -> tokenizers.Tokenizer:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:  # transformers before version 5 also has tokenizers in Python
        from transformers.convert_slow_tokenizer import convert_slow_tokenizer

        fast = convert_slow_tokenizer(tokenizer)
    return tokenizers.Tokenizer.from_str(fast.to_str())


def serialized(fast: tokenizers.Tokenizer) -> bytes:
    """The file that the runtime reads: without truncation and padding, which it does itself."""
    fast.no_truncation()
    fast.no_padding()
    content: str = fast.to_str(pretty=False)
    return content.encode()


def read_back(content: bytes, read: Callable[[Path], _Read]) -> _Read:
    """What the runtime reads of such a file. Raises `ExportError` where it refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_bytes(content)
        try:
            return read(file)
        except BundleError as error:
            raise ExportError(f"tokenizer: {str(error).removeprefix(f'{file}: ')}") from None


def _prove_source(tokenizer: Any, ours: Tokenizer, known: Mapping[str, int], language: str) -> None:
    special = sorted(set(tokenizer.all_special_tokens))[:20]
    probes = [*PROBES, *(f"one {token} two{token}three" for token in special)]
    for code in [*known][:2] or [""]:
        with quiet():
            ids, mask = ours(probes, {language: known[code]} if code else {})
            wanted = _their_ids(tokenizer, probes, code)
        same_ids(probes, [row[own].tolist() for row, own in zip(ids, mask, strict=True)], wanted)


def _their_ids(tokenizer: Any, texts: Sequence[str], code: str) -> list[list[int]]:
    """What transformers makes of texts of a language, if one is said."""
    if not code:
        return [tokenizer(text)["input_ids"] for text in texts]
    if hasattr(tokenizer, "spm_source"):
        return [tokenizer(f">>{code}<<{text}")["input_ids"] for text in texts]
    before, tokenizer.src_lang = tokenizer.src_lang, code
    try:
        return [tokenizer(text)["input_ids"] for text in texts]
    finally:
        tokenizer.src_lang = before


def same_ids(
    texts: Sequence[str], found: Sequence[list[int]], wanted: Sequence[list[int]], source: str = "transformers"
) -> None:
    """Raises `ExportError` where ids differ from those of the source."""
    for text, ids, theirs in zip(texts, found, wanted, strict=True):
        if ids != theirs:
            at = next((place for place, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), len(ids))
            raise ExportError(
                f"tokenizer: {text[:40]!r} gives the ids {ids[at : at + 8]}... from the {at}th on, "
                f"{source} gives {theirs[at : at + 8]}..."
            )


def _prove_target(tokenizer: Any, ours: Detokenizer, silent: set[str]) -> None:
    """Every token, among others by chance, and the probes. Silent tokens by themselves: where one stands within a
    character's bytes, transformers has made two signs of them before it takes the token out."""
    vocabulary = tokenizer.get_vocab()
    tokens = sorted({token for text, token in vocabulary.items() if text not in silent})
    random.Random(0).shuffle(tokens)
    rows = [tokens[start : start + _ROW] for start in range(0, len(tokens), _ROW)]
    with quiet():
        rows += [[vocabulary[text] for text in silent], *(tokenizer(probe)["input_ids"] for probe in PROBES)]
        for row in rows:
            found, wanted = ours.text(row), tokenizer.decode(row, skip_special_tokens=True)
            if found != wanted:
                raise ExportError(f"tokenizer: {row[:8]}... gives {found[:80]!r}, transformers gives {wanted[:80]!r}")
