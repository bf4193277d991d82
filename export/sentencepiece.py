"""The tokenizers that transformers has as sentencepiece files only, as files of the `tokenizers` library.

Their ids are not those of the .spm file: a vocab.json gives them. `mmrt.runtime.sentencepiece` says how one file keeps
both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mmrt.runtime import sentencepiece
from mmrt.runtime.errors import ExportError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2


def source(tokenizer: Any, codes: bool) -> tokenizers.Tokenizer:
    """What finds the tokens of a text, without the special ones around it, as MarianTokenizer, M2M100Tokenizer or
    SiglipTokenizer does.

    codes: whether a text may begin with Marian's `>>deu<<`.
    Raises `ExportError` where the .spm file wants what this mmrt does not know.
    """
    marian = hasattr(tokenizer, "spm_source")
    proto = _proto(tokenizer.spm_source if marian else tokenizer.sp_model)
    ids = tokenizer.encoder if hasattr(tokenizer, "encoder") else _own_ids(tokenizer.sp_model)
    ids = {**ids, **getattr(tokenizer, "lang_token_to_id", {}), **tokenizer.added_tokens_encoder}
    made = tokenizers.Tokenizer(_model(proto, ids, tokenizer.unk_token))
    if charsmap := proto.normalizer_spec.precompiled_charsmap:
        made.normalizer = normalizers.Precompiled(charsmap)
    if marian and codes:
        if tokenizer.supported_language_codes and proto.trainer_spec.model_type == _BPE:
            raise ExportError("tokenizer: the .spm file joins pairs (BPE), so codes such as '>>deu<<' are no pieces")
        made.pre_tokenizer = pre_tokenizers.Split(Regex(sentencepiece.CODES), "isolated")
    if hasattr(tokenizer, "encoder"):  # SiglipTokenizer leaves nothing of them in a text
        made.add_tokens(_added(tokenizer))
    return made


def target(tokenizer: Any) -> tokenizers.Tokenizer:
    """What makes texts of ids; it makes no ids of texts."""
    marian = hasattr(tokenizer, "spm_source")
    spm = tokenizer.sp_model if not marian else tokenizer.spm_source
    if marian and tokenizer.separate_vocabs:  # else transformers decodes with the source's too
        spm = tokenizer.spm_target
    proto = _proto(spm)
    pieces = {**tokenizer.decoder, **getattr(tokenizer, "id_to_lang_token", {})}
    pieces |= {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}
    ids = {piece: token for token, piece in pieces.items()}
    known = {piece.piece for piece in proto.pieces}
    if not marian and (odd := [piece for piece in ids if sentencepiece.SPACE in piece and piece not in known]):
        raise ExportError(f"tokenizer: {odd[0]!r} in vocab.json is not in the .spm file; its blank cannot be told")
    made = tokenizers.Tokenizer(models.WordLevel(ids, tokenizer.unk_token))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(sentencepiece.SPACE, " "),
            decoders.Fuse(),
            decoders.Replace(Regex(sentencepiece.STRIPPED), ""),
        ]
    )
    silent = {piece.piece for piece in proto.pieces if piece.type == _CONTROL} | set(tokenizer.all_special_tokens)
    made.add_special_tokens(
        [tokenizers.AddedToken(piece, normalized=False, special=True) for piece in ids if piece in silent]
    )
    return made


def _own_ids(spm: Any) -> dict[str, int]:
    return {spm.id_to_piece(place): place for place in range(spm.get_piece_size())}


def _proto(spm: Any) -> Any:
    """The .spm file's content. Raises `ExportError` for settings that the runtime does not follow."""
    from sentencepiece import sentencepiece_model_pb2 as messages

    proto: Any = messages.ModelProto.FromString(spm.serialized_model_proto())  # type: ignore[attr-defined]
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    odd = {
        "add_dummy_prefix off": not normalizer.add_dummy_prefix,
        "remove_extra_whitespaces off": not normalizer.remove_extra_whitespaces,
        "escape_whitespaces off": not normalizer.escape_whitespaces,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "a denormalizer": bool(proto.denormalizer_spec.precompiled_charsmap),
        f"model type {trainer.model_type}": trainer.model_type not in (_UNIGRAM, _BPE),
        "user-defined pieces": any(piece.type == _USER_DEFINED for piece in proto.pieces),
        "byte pieces": any(piece.type == _BYTE for piece in proto.pieces),
        "unused pieces": any(piece.type == _UNUSED for piece in proto.pieces),
    }
    if found := [what for what, is_so in odd.items() if is_so]:
        raise ExportError(f"tokenizer: the .spm file has {', '.join(found)}; this mmrt does not know how to say so")
    return proto


def _model(proto: Any, ids: Mapping[str, int], unknown: str) -> Any:
    pieces = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    letters = {letter for piece in pieces for letter in piece}
    if missing := sorted(letters - pieces.keys()):
        raise ExportError(f"tokenizer: the .spm file has {missing[0]!r} in longer pieces only")
    if odd := [piece for piece in pieces if " " in piece or not piece]:
        raise ExportError(f"tokenizer: the .spm file has the piece {odd[0]!r}, which has a blank")
    first = [(f"  {unknown}", 0.0), (" ", 0.0), *pieces.items(), (sentencepiece.MARK, 0.0)]
    texts = {token: text for text, token in ids.items()}
    if len(texts) < len(ids):
        raise ExportError("tokenizer: two tokens of the vocabulary have the same id")
    second = [(f" {texts[token]}" if token in texts else f"  {token}", 0.0) for token in range(max(texts) + 1)]
    if proto.trainer_spec.model_type == _UNIGRAM:
        return models.Unigram([*first, *second], 0, False)
    if odd := [text for text in ids if text not in pieces and not set(text) & letters and _reachable(text)]:
        raise ExportError(f"tokenizer: vocab.json has {odd[0]!r}, of which the .spm file knows no letter")
    vocabulary = {piece: place for place, (piece, _) in enumerate([*first, *second])}
    return models.BPE(vocabulary, _merges(pieces), unk_token=first[0][0], fuse_unk=True)


def _reachable(text: str) -> bool:
    """Whether sentencepiece may find all of a text unknown: every normalized text begins with SPACE."""
    return sentencepiece.SPACE not in text


def _merges(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs that make a piece, best piece first, as sentencepiece's BPE joins them."""
    ranked = sorted(pieces, key=lambda piece: -pieces[piece])
    splits = ((piece[:place], piece[place:]) for piece in ranked for place in range(len(piece) - 1, 0, -1))
    return [(left, right) for left, right in splits if left in pieces and right in pieces]


def _added(tokenizer: Any) -> list[tokenizers.AddedToken]:
    added = list(tokenizer.added_tokens_decoder.values())
    if odd := [token for token in added if token.lstrip or token.rstrip or token.single_word]:
        raise ExportError(f"tokenizer: {odd[0].content!r} takes blanks with it or stands alone only")
    return [tokenizers.AddedToken(token.content, normalized=False, special=token.special) for token in added]
