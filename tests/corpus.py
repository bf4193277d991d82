"""Texts of many scripts, and small real tokenizers trained on them: made anew, always the same, nothing is fetched."""

# ruff: noqa: RUF001
from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SENTENCES = """
The quick brown fox doesn't jump over 13 lazy dogs, does it?
Le cœur a ses raisons que la raison ne connaît point ; où êtes-vous allés ?
Fröhlich grüßen die Straßenbahnen, während Müller Äpfel kauft.
El niño comió piñas en la montaña. ¿Dónde está la biblioteca?
Não há nada como um pão de queijo em São Paulo.
Perché il gatto dorme sul tetto? Così è la vita.
Zażółć gęślą jaźń, powiedział Łukasz w środę.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Árvíztűrő tükörfúrógép működik a műhelyben.
Ștefan a cumpărat mere și țiței în București.
Pijamalı hasta yağız şoföre çabucak güvendi; İstanbul ve ısırgan.
Tôi yêu Việt Nam; trời hôm nay thật đẹp và nắng ấm.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Щастя б'ється в грудях, як їжак у ґанку.
Ћирилица је писмо којим се пише српски језик.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία στην Αθήνα.
Բարեւ ձեզ, ինչպե՞ս եք այսօր։
გამარჯობა, როგორ ხართ დღეს საქართველოში?
שלום עולם, מה שלומך היום? זהו משפט בעברית.
مرحبا بالعالم، كيف حالك اليوم؟ هذه جملة بالعربية.
این یک جملهٔ فارسی است که می‌خواهیم بخوانیم.
یہ اردو کا ایک جملہ ہے۔
नमस्ते दुनिया, आज आप कैसे हैं? यह हिन्दी है।
আমার সোনার বাংলা, আমি তোমায় ভালোবাসি।
ਸਤ ਸ੍ਰੀ ਅਕਾਲ, ਤੁਸੀਂ ਕਿਵੇਂ ਹੋ?
નમસ્તે, તમે કેમ છો? આ ગુજરાતી છે.
வணக்கம் உலகம், நீங்கள் எப்படி இருக்கிறீர்கள்?
నమస్కారం ప్రపంచం, మీరు ఎలా ఉన్నారు?
ನಮಸ್ಕಾರ, ಹೇಗಿದ್ದೀರಿ? ಇದು ಕನ್ನಡ.
നമസ്കാരം, സുഖമാണോ? ഇത് മലയാളമാണ്.
ආයුබෝවන්, ඔබට කොහොමද?
สวัสดีชาวโลก วันนี้คุณเป็นอย่างไรบ้าง
ສະບາຍດີ, ເຈົ້າສະບາຍດີບໍ?
မင်္ဂလာပါ ကမ္ဘာကြီး နေကောင်းလား။
សួស្តីពិភពលោក តើអ្នកសុខសប្បាយទេ?
བཀྲ་ཤིས་བདེ་ལེགས། ཁྱེད་རང་སྐུ་གཟུགས་བདེ་པོ་ཡིན་པས།
你好，世界！今天的天气怎么样？我想喝一杯热茶。
妳好嗎？這是一個繁體中文的句子，謝謝。
こんにちは、世界。カタカナとひらがなと漢字、ﾊﾝｶｸ。
안녕하세요 세계, 오늘은 어떻게 지내세요?
ሰላም ለዓለም፣ እንደምን ነህ?
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎤᏬᏂᎯ.
ᓄᓇᕗᑦ ᐃᓄᒃᑎᑐᑦ ᑎᑎᕋᖅᓯᒪᔪᖅ
Сайн байна уу, дэлхий? Монгол хэл ᠮᠣᠩᠭᠣᠯ
Habari za asubuhi, rafiki yangu mpendwa.
""".strip().splitlines()
EMOJI_LINE = "👩‍👩‍👧‍👦 👨🏽‍🚀 🏳️‍🌈 🏴‍☠️ ❤️‍🔥 🧑🏿‍🤝‍🧑🏻 🇨🇳 🇩🇪🇫🇷 1️⃣ #️⃣ *️⃣ 0⃣ 🏴󠁧󠁢󠁳󠁣󠁴󠁿 ☀️ ☀︎ 😀 🤦🏻‍♀️ 👍🏾 ㊗️ ©️ 🆒 🫠 \u200d \ufe0f 🇦"
EMOJI = EMOJI_LINE.split(" ")
MARKS = "\u0301\u0308\u0323\u0302\u200d\ufe0f\u20e3\u093c\u09be\u3099\u1161\u11a8"
BLANKS = (
    "\t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\ufeff\x00\x07\x1b\x7f\xad\u2581\ufffd"
)
PUNCTUATION = [" .", " ,", " ?", " !", " ' ", " n't", " 'm", " 's", " 've", " 're", "n '", "'", " ", "  "]
SPECIALS = [
    "</s>",
    "<s>",
    "<pad>",
    "<unk>",
    "<mask>",
    "[SEP]",
    "<|endoftext|>",
    ">>deu<<",
    ">>fra<< ",
    ">>",
    "<<",
    "en_XX",
]
LETTERS = [chr(each) for each in range(0x20, 0x30000) if unicodedata.category(chr(each)) not in ("Cn", "Cs", "Co")]


def lines(count: int = 5000, seed: int = 0) -> list[str]:
    """The sentences, every letter's name with its letter now and then, and mixtures of all of it."""
    chance = random.Random(seed)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    kinds: list[Callable[[], str]] = [
        lambda: " ".join(chance.choices(words, k=chance.randint(1, 8))),
        lambda: "".join(chance.choices(EMOJI, k=chance.randint(1, 4))),
        lambda: "".join(chance.choices(LETTERS, k=chance.randint(1, 12))),
        lambda: (
            "".join(chr(ord(chance.choice(LETTERS)) & ~127 | chance.randint(0, 127)) for _ in "12345")
            .encode(errors="ignore")
            .decode()
        ),
        lambda: "".join(chance.choice(LETTERS[:3000]) + "".join(chance.choices(MARKS, k=2)) for _ in "1234"),
        lambda: unicodedata.normalize(chance.choice(["NFD", "NFKD", "NFC"]), chance.choice(SENTENCES)),
        lambda: unicodedata.name(chance.choice(LETTERS), "CONTROL").title(),
        lambda: "".join(chance.choices(BLANKS, k=chance.randint(1, 3))),
        lambda: "".join(chance.choices(PUNCTUATION, k=chance.randint(1, 4))),
        lambda: chance.choice(SPECIALS),
        lambda: chance.choice("aAxX 1.-") * chance.randint(1, 40),
        lambda: str(chance.randint(0, 10**9)),
    ]
    mixed = [
        "".join(chance.choice(kinds)() for _ in range(chance.randint(1, 4))) for _ in range(count - len(SENTENCES))
    ]
    return SENTENCES + mixed


def train_lines() -> list[str]:
    """What tokenizers are trained on: sentences, often; other texts have letters that the tokenizers do not know."""
    chance = random.Random(1)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    return SENTENCES * 3 + [" ".join(chance.choices(words, k=6)) for _ in range(1500)] + EMOJI[:8] * 3


def byte_level(kind: str, folder: Path) -> Any:
    """GPT-2, BART, RoBERTa or Whisper."""
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    specials = {
        "GPT2Tokenizer": ["<|endoftext|>"],
        "WhisperTokenizer": ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|notimestamps|>"],
    }.get(kind, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    trained.train_from_iterator(train_lines(), vocab_size=1200, special_tokens=specials, show_progress=False)
    content = json.loads(trained.to_str())["model"]
    made = getattr(transformers, kind)(vocab=content["vocab"], merges=[tuple(each) for each in content["merges"]])
    if kind == "WhisperTokenizer":
        made.add_tokens([f"<|{step / 50:.2f}|>" for step in range(100)])
    return reload(made, folder)


def bert(folder: Path, lower: bool = True) -> Any:
    """Letters, and the words and endings that are seen most: the trainer of `tokenizers` lets chance decide between
    those that are seen as often, so that what models make of its ids would differ from run to run."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from transformers import BertTokenizer

    normal, split = BertNormalizer(lowercase=lower), BertPreTokenizer()
    lines = [normal.normalize_str(line) for line in train_lines()]
    words = Counter(word for line in lines for word, _ in split.pre_tokenize_str(line))
    letters = sorted({letter for word in words for letter in word})
    seen = Counter(words)
    for word, count in words.items():
        seen.update({f"##{word[-size:]}": count for size in (2, 3, 4) if size < len(word)})
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    often = sorted(seen.keys() - {*known}, key=lambda piece: (-seen[piece], piece))
    vocabulary = {piece: number for number, piece in enumerate([*known, *often][:1500])}
    return reload(BertTokenizer(vocab=vocabulary, do_lower_case=lower, clean_up_tokenization_spaces=True), folder)


def spm(path: Path, kind: str = "unigram", size: int = 1500, lines: list[str] | None = None, **options: Any) -> Path:
    """A sentencepiece model, trained by sentencepiece itself."""
    import sentencepiece

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines or train_lines()),
            model_writer=file,
            model_type=kind,
            vocab_size=size,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
            **options,
        )
    return path


def from_spm(kind: str, folder: Path) -> Any:
    """T5, mBART, mBART-50 or NLLB, with the pieces of a sentencepiece model."""
    import transformers
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    found = SentencePieceExtractor(
        str(spm(folder / "train" / "a.spm", "bpe" if kind == "NllbTokenizer" else "unigram"))
    )
    charsmap = found.proto.normalizer_spec.precompiled_charsmap
    pieces = [(piece.piece, piece.score) for piece in found.proto.pieces][3:]
    if kind == "T5Tokenizer":
        vocab: Any = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]
        vocab += [(f"<extra_id_{place}>", 0.0) for place in reversed(range(100))]
        return reload(transformers.T5Tokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap), folder)
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]
    if kind == "NllbTokenizer":
        vocab = {piece: place for place, (piece, _) in enumerate(vocab)}
        from transformers.tokenization_utils_base import generate_merges

        merges = generate_merges({piece: place for place, (piece, _) in enumerate(pieces)}, None)
        made = transformers.NllbTokenizer(vocab=vocab, merges=merges, _spm_precompiled_charsmap=charsmap)
        return reload(made, folder)
    if kind == "MBart50Tokenizer":
        vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *pieces]
        return reload(transformers.MBart50Tokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap), folder)
    return reload(getattr(transformers, kind)(vocab=vocab), folder)


def marian(folder: Path, kind: str = "unigram", languages: bool = True, **options: Any) -> Any:
    """Two .spm files and one vocab.json, in which some source pieces lack and whose order is another."""
    from transformers import MarianTokenizer

    source = spm(folder / "source.spm", kind, 1200, train_lines(), **options)
    texts = train_lines() if kind == "bpe" else train_lines()[::-2]
    target = spm(folder / "target.spm", kind, 900, texts, **options)
    chance = random.Random(2)
    pieces = sorted({*_pieces(source)[3:], *_pieces(target)[3:]})
    pieces = [piece for piece in pieces if chance.random() > 0.05] + (
        ["Җ", "ԶԶ", "㐀㐁"] if kind == "unigram" else []  # what sentencepiece finds unknown has an id after all
    )
    chance.shuffle(pieces)
    codes = [">>deu<<", ">>fra<<"] if languages else []
    vocab = {piece: place for place, piece in enumerate(["</s>", "<unk>", *pieces, *codes, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}', encoding="utf-8")
    return reload(MarianTokenizer.from_pretrained(folder), folder / "saved")


def m2m100(folder: Path) -> Any:
    from transformers import M2M100Tokenizer

    path = spm(folder / "sentencepiece.bpe.model", "bpe")
    pieces = [piece for piece in _pieces(path)[3:] if hash_of(piece) % 20]
    vocab = {piece: place for place, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    made = M2M100Tokenizer(vocab_file=str(folder / "vocab.json"), spm_file=str(path))
    codes = list(made.lang_token_to_id)
    made = M2M100Tokenizer(vocab_file=str(folder / "vocab.json"), spm_file=str(path), additional_special_tokens=codes)
    return reload(made, folder / "saved")


def siglip(folder: Path) -> Any:
    """SigLIP's: ids are those of the .spm file, texts are in lower case and without punctuation."""
    from transformers import SiglipTokenizer

    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    path = spm(folder / "spiece.model", lines=[line.lower() for line in train_lines()], **ids)
    return reload(SiglipTokenizer(str(path)), folder / "saved")


def gemma(folder: Path) -> Any:
    """SigLIP 2's: pairs of letters with bytes for unknown ones, the end's token after each text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trained.train_from_iterator(
        [line.lower() for line in train_lines()],
        trainers.BpeTrainer(vocab_size=1500, special_tokens=specials, show_progress=False),
    )
    trained.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    content = json.loads(trained.to_str())["model"]
    made = GemmaTokenizer(
        vocab=content["vocab"],
        merges=[tuple(each) for each in content["merges"]],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_input_names=["input_ids"],
        model_max_length=64,
    )
    return reload(made, folder)


def hash_of(text: str) -> int:
    return sum(place * byte for place, byte in enumerate(text.encode(), 1))


def _pieces(path: Path) -> list[str]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [model.id_to_piece(place) for place in range(model.get_piece_size())]


def reload(made: Any, folder: Path) -> Any:
    """The tokenizer as it is loaded from what it saves."""
    made.save_pretrained(folder)
    return type(made).from_pretrained(folder)


MADE: dict[str, Callable[[Path], Any]] = {
    "GPT-2": lambda folder: byte_level("GPT2Tokenizer", folder),
    "BART": lambda folder: byte_level("BartTokenizer", folder),
    "RoBERTa": lambda folder: byte_level("RobertaTokenizer", folder),
    "Whisper": lambda folder: byte_level("WhisperTokenizer", folder),
    "BERT": bert,
    "BERT cased": lambda folder: bert(folder, lower=False),
    "T5": lambda folder: from_spm("T5Tokenizer", folder),
    "mBART": lambda folder: from_spm("MBartTokenizer", folder),
    "mBART-50": lambda folder: from_spm("MBart50Tokenizer", folder),
    "NLLB": lambda folder: from_spm("NllbTokenizer", folder),
    "Marian": marian,
    "Marian, BPE": lambda folder: marian(folder, "bpe", languages=False),
    "Marian, identity": lambda folder: marian(folder, normalization_rule_name="identity"),
    "Marian, nmt_nfkc_cf": lambda folder: marian(folder, normalization_rule_name="nmt_nfkc_cf"),
    "M2M100": m2m100,
}
