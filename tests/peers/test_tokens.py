"""The texts of a bundle are those of transformers' own `generate` on the same checkpoint, token by token, in fp32."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from checkpoints import export_half, exports  # noqa: E402
from PIL import Image  # noqa: E402
from text_checkpoints import CAPTIONERS, POSITIONS, TRANSLATORS, save_text_checkpoint  # noqa: E402

import mmrt  # noqa: E402
from mmrt.export.quiet import quiet  # noqa: E402
from mmrt.runtime import manifest as m  # noqa: E402
from mmrt.runtime.errors import RequestError  # noqa: E402
from mmrt.runtime.events import Done, Token  # noqa: E402
from mmrt.runtime.receipt import replay  # noqa: E402

torch.set_num_threads(1)

TEXTS = [
    "a red heart",
    "The quick brown fox doesn't jump over 13 lazy dogs, does it? Le chat dort sur le toit.",
    "",
    "Zażółć gęślą jaźń, שלום, 你好！ 👍🏾",  # noqa: RUF001
]
LENGTHS = (1, 31, 100)  # the buffers have 32 places, or 64 at first and then 128
DRAWN: list[dict[str, Any]] = [  # of tokens that may come
    {"temperature": 1.5, "top_k": 8},
    {"temperature": 2.5, "top_p": 0.6, "top_k": 0},
    {"temperature": 2.0, "min_p": 0.05, "top_k": 12},
    {"temperature": 0.7, "typical_p": 0.5, "top_k": 0},
]
LANGUAGES: dict[str, list[dict[str, str]]] = {
    "mBART": [
        {"source_language": "ro_RO", "target_language": "de_DE"},
        {"source_language": "zh_CN", "target_language": "en_XX"},
    ],
    "Marian": [{"target_language": "deu"}, {"target_language": "fra"}],
    "M2M100": [
        {"source_language": "de", "target_language": "fr"},
        {"source_language": "zu", "target_language": "af"},
    ],
    "NLLB": [
        {"source_language": "deu_Latn", "target_language": "zho_Hans"},
        {"source_language": "fra_Latn", "target_language": "eng_Latn"},
    ],
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name, for mmrt, for transformers
    "short beams": (
        {"beams": 4, "length_penalty": -1.0, "early_stopping": "yes"},
        {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
    ),
    "long beams": (
        {"beams": 3, "length_penalty": 2.0, "early_stopping": "never", "no_repeat_ngram_size": 3},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "no_repeat_ngram_size": 3},
    ),
    "rules": (
        {"beams": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 34},
        {"num_beams": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 34},
    ),
    # T5's third and fourth texts here have equal scores: their order is rounding's
    "several": ({"beams": 4, "num_texts": 2}, {"num_beams": 4, "num_return_sequences": 2}),
}


class Text(NamedTuple):
    """A result: the new tokens with the one that ended it, their text, and why it ended."""

    tokens: tuple[int, ...]
    text: str
    stopped: str


class Source:
    """transformers' model of a checkpoint, and the bundle that was made of it."""

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        self.checkpoint = checkpoint
        self.pictures = (checkpoint / "preprocessor_config.json").exists()
        kind = transformers.VisionEncoderDecoderModel if self.pictures else transformers.AutoModelForSeq2SeqLM
        with quiet():
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
            self.model = kind.from_pretrained(checkpoint).eval()
            if self.pictures:
                self.processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
        self.marian = hasattr(self.tokenizer, "spm_source")
        self.pipeline = mmrt.load(bundle, threads=1)
        self.languages = {
            name: spec.default for name, spec in self.pipeline.manifest.inputs.items() if name.endswith("_language")
        }

    def prompts(self, count: int) -> dict[str, Any]:
        """Texts or pictures, the shortest request first."""
        return {"image": pictures()[:count]} if self.pictures else {"text": TEXTS[:count]}

    def theirs(self, given: Mapping[str, Any], **options: Any) -> list[Text]:
        """What `generate` gives. `given` is as for the bundle, languages too; the options have transformers' names."""
        given = self.languages | given
        target = given.get("target_language")
        with quiet(), torch.no_grad():
            encoded = self._encoded(given)
            if target is not None and not self.marian:
                option = "decoder_start_token_id" if "MBart" in type(self.model).__name__ else "forced_bos_token_id"
                code = getattr(self.tokenizer, "lang_code_to_token", {}).get(target, target)  # M2M100 has __de__ for de
                options[option] = self.tokenizer.convert_tokens_to_ids(code)
            found = self.model.generate(**encoded, **{"do_sample": False, **options})[:, 1:]
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return [self._text(row, text) for row, text in zip(found.tolist(), texts, strict=True)]

    def _encoded(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if self.pictures:
            return {"pixel_values": self.processor(images=given["image"], return_tensors="pt")["pixel_values"]}
        if "source_language" in given:
            self.tokenizer.src_lang = given["source_language"]
        prefix = f">>{given['target_language']}<<" if self.marian else ""
        encoded = self.tokenizer([prefix + text for text in given["text"]], padding=True, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _text(self, row: list[int], text: str) -> Text:
        """Without the padding, which is the end's token where transformers takes 0 for no padding token."""
        end = self.model.generation_config.eos_token_id
        ended = end in row
        return Text(tuple(row[: row.index(end) + 1] if ended else row), text, "end" if ended else "length")

    def ours(self, given: Mapping[str, Any], **options: Any) -> list[Text]:
        """What the bundle gives, with its inputs' names, as the stream tells it."""
        tokens: dict[int, list[int]] = {}
        words: dict[int, str] = {}
        for event in self.pipeline.stream(**given, **options):
            if isinstance(event, Token):
                words[event.index] = words.get(event.index, "") + event.text
                tokens.setdefault(event.index, []).extend([event.id] if event.id is not None else [])
        assert isinstance(event, Done)
        result = event.result
        assert [words[index] for index in range(len(words))] == result.texts
        assert result.timings["tokens"] == sum(map(len, tokens.values()))
        rows = zip(sorted(tokens), result.texts, result.stopped, strict=True)
        return [Text(tuple(tokens[index]), text, stopped) for index, text, stopped in rows]


@cache
def pictures() -> list[Image.Image]:
    """Coloured patches, of odd sizes."""
    rng = np.random.default_rng(0)
    patches = [rng.integers(0, 255, (3, 4 + each, 3), np.uint8) for each in range(4)]
    return [Image.fromarray(each).resize((70 + 9 * place, 50)) for place, each in enumerate(patches)]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """Of every name in `TRANSLATORS` and `CAPTIONERS` its checkpoint and bundle, made when first asked for."""

    made = exports(tmp_path_factory, lambda folder, name: save_text_checkpoint(name, folder))
    return cache(lambda name: Source(*made(name)))


@pytest.fixture(params=[*TRANSLATORS, *CAPTIONERS])
def source(request: pytest.FixtureRequest, sources: Callable[[str], Source]) -> Source:
    return sources(request.param)


# ---------------------------------------------------------------- token by token


def test_greedy_and_beams(source: Source) -> None:
    """Some texts end early, by the model's own end, and they differ, or equality would say little."""
    early, every = 0, set()
    for beams in (1, 4):
        for count in (1, 4):
            for length in LENGTHS:
                given = source.prompts(count)
                found = source.ours(given, beams=beams, max_new_tokens=length)
                assert found == source.theirs(given, num_beams=beams, max_new_tokens=length), (beams, count, length)
                early += sum(len(each.tokens) < length and each.stopped == "end" for each in found)
                every |= {each.tokens for each in found}
    assert early
    assert len(every) > 5
    assert max(len({*tokens}) for tokens in every) > 5


def test_defaults_are_the_checkpoints(source: Source) -> None:
    """Marian's has 6 beams."""
    given = source.prompts(2)
    assert source.ours(given, max_new_tokens=12) == source.theirs(given, max_new_tokens=12)


@pytest.mark.parametrize("name", ["T5", "BART", "ViT, GPT-2"])
@pytest.mark.parametrize("case", OPTIONS)
def test_options(sources: Callable[[str], Source], name: str, case: str) -> None:
    source, (for_us, for_them) = sources(name), OPTIONS[case]
    given = source.prompts(4)
    found = source.ours(given, **for_us, max_new_tokens=40)
    assert found == source.theirs(given, **for_them, max_new_tokens=40)
    if case == "several":
        assert len(found) == 8
        assert all(len({*found[start : start + 2]}) == 2 for start in (0, 2, 4, 6))
    if case == "rules":
        assert all(len(each.tokens) >= 34 for each in found)


def test_a_long_text(sources: Callable[[str], Source]) -> None:
    """Positions are relative: nothing but the request sets a limit."""
    source = sources("T5")
    for beams, count in ((1, 4), (3, 1)):
        given = source.prompts(count)
        found = source.ours(given, beams=beams, max_new_tokens=400, min_new_tokens=390)
        assert found == source.theirs(given, num_beams=beams, max_new_tokens=400, min_new_tokens=390)
        assert all(len(each.tokens) > 390 for each in found)


def test_up_to_the_models_room(source: Source) -> None:
    """To the last of the decoder's positions, where it has so many; else well past them."""
    options: dict[str, Any] = {"max_new_tokens": POSITIONS - 1, "min_new_tokens": POSITIONS - 1}
    found = source.ours(source.prompts(2), beams=1, **options)
    assert found == source.theirs(source.prompts(2), num_beams=1, **options)
    assert {len(each.tokens) for each in found} == {POSITIONS - 1}


# ---------------------------------------------------------------- languages


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("beams", [1, 3])
def test_languages(sources: Callable[[str], Source], name: str, beams: int) -> None:
    source, results = sources(name), []
    for languages in LANGUAGES[name]:
        given = {"text": TEXTS, **languages}
        results.append(source.ours(given, beams=beams, max_new_tokens=20))
        assert results[-1] == source.theirs(given, num_beams=beams, max_new_tokens=20)
    assert results[0] != results[1]


def test_mbart_translates_into_the_language_that_it_begins_with(sources: Callable[[str], Source]) -> None:
    """Though its tokenizer names none."""
    assert sources("mBART").languages == {"source_language": "en_XX", "target_language": "ro_RO"}


# ---------------------------------------------------------------- the stream


@pytest.fixture
def bart(sources: Callable[[str], Source]) -> Source:
    return sources("BART")


def test_tokens_come_as_they_are_chosen(bart: Source) -> None:
    """Leaving the loop after three steps of two texts frees the request, and the next one knows nothing of it."""
    whole = bart.ours(bart.prompts(2), beams=1, max_new_tokens=100)
    stream = bart.pipeline.stream(**bart.prompts(2), beams=1, max_new_tokens=100)
    events = [next(stream) for _ in range(6)]
    stream.close()  # type: ignore[attr-defined]
    assert [event.index for event in events if isinstance(event, Token)] == [0, 1] * 3
    for index in (0, 1):
        ids = [event.id for event in events if isinstance(event, Token) and event.index == index]
        assert tuple(ids) == whole[index].tokens[:3]
    assert bart.ours(bart.prompts(2), beams=1, max_new_tokens=100) == whole


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.8, "min_p": 0.01}, {"typical_p": 0.7}])
def test_drawn_tokens_are_the_seeds(bart: Source, options: dict[str, Any]) -> None:
    """Row i of a batch with the seed s is the single request with the seed s + i."""
    drawn = {"temperature": 1.5, "max_new_tokens": 40, "beams": 1, **options}
    found = bart.ours({"text": TEXTS}, seed=7, **drawn)
    assert bart.ours({"text": TEXTS}, seed=7, **drawn) == found
    assert bart.ours({"text": TEXTS}, seed=8, **drawn) != found
    alone = [bart.ours({"text": text}, seed=7 + row, **drawn)[0] for row, text in enumerate(TEXTS)]
    assert alone == found


@pytest.mark.parametrize("options", DRAWN)
def test_drawn_tokens_are_distributed_as_transformers_says(sources: Callable[[str], Source], options: Any) -> None:
    """Pearson's chi square of 2,000 texts' first tokens, over those that are expected five times or more."""
    source, text, draws = sources("BART, nothing forced"), TEXTS[1], 2000
    with quiet(), torch.no_grad():
        encoded = source.tokenizer([text], return_tensors="pt")
        start = torch.tensor([[source.model.generation_config.decoder_start_token_id]])
        scores = source.model(**encoded, decoder_input_ids=start).logits[:, -1]
        for warper in source.model._get_logits_processor(transformers.GenerationConfig(do_sample=True, **options)):
            scores = warper(start, scores)
    expected = draws * scores.softmax(-1)[0].double().numpy()
    found = source.ours({"text": [text] * draws}, max_new_tokens=1, beams=1, seed=0, **options)
    drawn = np.bincount([each.tokens[0] for each in found], minlength=len(expected))
    assert not drawn[expected == 0].any()
    often = expected >= 5
    assert often.sum() > 2
    pooled = [np.append(each[often], each[~often].sum()) for each in (drawn, expected)]
    chi_square = ((pooled[0] - pooled[1]) ** 2 / np.maximum(pooled[1], 1)).sum()
    freedom = often.sum()
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_several_drawn_texts_of_one_prompt(bart: Source) -> None:
    drawn = {"temperature": 1.0, "max_new_tokens": 20, "beams": 1}
    found = bart.ours({"text": TEXTS[:2]}, seed=3, num_texts=3, **drawn)
    assert len({*found}) == 6
    alone = [bart.ours({"text": TEXTS[row // 3]}, seed=3 + row, **drawn)[0] for row in range(6)]
    assert alone == found


def test_provenance_makes_a_drawn_text_again(bart: Source) -> None:
    result = bart.pipeline.generate(TEXTS[:2], temperature=1.0, beams=1, max_new_tokens=20, num_texts=2)
    for text, provenance in zip(result.texts, result.provenance, strict=True):
        assert bart.pipeline.generate(**provenance["request"]).texts == [text]


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings(bart: Source, beams: int) -> None:
    """As transformers' `stop_strings`: the text ends with the token that completes one."""
    (whole,) = bart.ours({"text": TEXTS[0]}, beams=beams, max_new_tokens=60, min_new_tokens=60)
    places = range(len(whole.text) // 3, len(whole.text) - 2)
    stop = next(whole.text[at : at + 3] for at in places if "\ufffd" not in whole.text[at : at + 3])
    options: dict[str, Any] = {"max_new_tokens": 60, "min_new_tokens": 60}
    (found,) = bart.ours({"text": TEXTS[0]}, beams=beams, stop=["never comes", stop], **options)
    if beams == 1:
        assert found.stopped == "stop"
        assert stop in found.text
        assert len(found.tokens) < len(whole.tokens)
    (wanted,) = bart.theirs(
        {"text": TEXTS[:1]}, num_beams=beams, stop_strings=["never comes", stop], tokenizer=bart.tokenizer, **options
    )
    assert (found.tokens, found.text) == (wanted.tokens, wanted.text)


def test_in_fp16_caches_are_half_and_tokens_the_same_where_they_were_clear(
    sources: Callable[[str], Source], tmp_path: Path
) -> None:
    """T5 has masks of the least float32, logarithms of 0 and norms of single operators."""
    source = sources("T5")
    bundle = export_half(source.checkpoint, source.pipeline.bundle.path, tmp_path / "half.mmrt")
    half = mmrt.load(bundle, precision="fp16")
    stage = half.manifest.program[-1]
    assert isinstance(stage, m.Autoregress)
    engine = half.engines["decoder"]
    for old, new in stage.caches.items():
        assert engine.inputs[old] == engine.outputs[new]
        assert engine.inputs[old].dtype == "float16"
    assert engine.outputs["logits"].dtype == "float32"
    checks = {check.what: check for check in replay(half)}
    assert all(check.passed for check in checks.values())
    assert {"greedy: sequences", "beams: sequences"} <= checks.keys()
    assert half.arrays(text=TEXTS[:2], beams=4)["scores"].shape == (2,)


def test_many_threads_on_one_pipeline(sources: Callable[[str], Source]) -> None:
    source = sources("T5")
    requests: list[dict[str, Any]] = [
        {"text": TEXTS[place % 4], "beams": 1 + place % 3, "max_new_tokens": 10 + 5 * place} for place in range(9)
    ]
    requests.append({"text": TEXTS, "beams": 1, "temperature": 1.0, "seed": 5, "max_new_tokens": 40})
    wanted = [source.pipeline.generate(**request).texts for request in requests]
    barrier = threading.Barrier(4)

    def work(first: int) -> bool:
        barrier.wait()
        order = [(first * 3 + step) % 10 for step in range(10)]
        return all(source.pipeline.generate(**requests[place]).texts == wanted[place] for place in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


# ---------------------------------------------------------------- what cannot be answered


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {  # bundle, request, what the message says
    "too long": ("BART", {"text": "many words " * 200}, r"text has \d+ tokens, at most 128"),
    "no text": ("BART", {}, "text is missing"),
    "no longer a picture": ("ViT, BERT", {"image": __file__}, "not a picture that can be read"),
    "no picture": ("ViT, BERT", {}, "image is missing"),
    "not a picture": ("ViT, BERT", {"image": "no/such.png"}, "no such file"),
    "unknown language": ("NLLB", {"text": "a", "target_language": "xxx_Latn"}, "target_language is 'xxx_Latn'"),
    "more results than beams": ("BART", {"text": "a", "beams": 2, "num_texts": 3}, "at least as many beams"),
    "drawn beams": ("BART", {"text": "a", "beams": 2, "temperature": 0.5}, "temperature is 0.5"),
    "no room": ("BART", {"text": "a", "max_new_tokens": POSITIONS}, f"max_new_tokens is {POSITIONS}"),
    "no tokens": ("BART", {"text": "a", "max_new_tokens": 0}, "max_new_tokens is 0"),
    "an empty stop": ("BART", {"text": "a", "stop": [""]}, "stop is"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(sources: Callable[[str], Source], name: str) -> None:
    bundle, request, message = ERRORS[name]
    with pytest.raises(RequestError, match=message) as error:
        sources(bundle).pipeline.generate(**request)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_hundred_megapixels(sources: Callable[[str], Source], tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    with pytest.raises(RequestError, match=r"large\.png: more than [0-9,]+ pixels, too large a picture"):
        sources("ViT, BERT").pipeline.generate(image=tmp_path / "large.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (301, 2)])
def test_a_picture_of_any_size(sources: Callable[[str], Source], size: tuple[int, int]) -> None:
    source, given = sources("ViT, BERT"), {"image": [Image.new("RGB", size, "orange")]}
    assert source.ours(given, beams=1, max_new_tokens=8) == source.theirs(given, num_beams=1, max_new_tokens=8)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_an_empty_text_alone(sources: Callable[[str], Source], name: str) -> None:
    source = sources(name)
    assert source.ours({"text": ""}, max_new_tokens=8) == source.ours({"text": ["a b", ""]}, max_new_tokens=8)[1:]
