"""Rules and searches against transformers: each rule on random logits, and whole texts of two tiny random models.

mmrt's search is driven by the same torch model, which reads every text anew at each step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from mmrt.runtime import logits, noise
from mmrt.runtime.search import Completion, Rules, search

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.generation import logits_process as peers  # noqa: E402

VOCABULARY, PAD, START, ENDS = 24, 21, 22, (5, 11)
LENGTH = 10  # new tokens
Scores = np.ndarray


# ---------------------------------------------------------------- numbers to draw by


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, -1])
def test_uniform_is_torch_rand(seed: int) -> None:
    ours, theirs = noise.TorchCpu(seed), torch.Generator("cpu").manual_seed(seed)
    for _ in range(700):  # more words than the twister makes at once
        assert ours.uniform() == torch.rand((), dtype=torch.float64, generator=theirs).item()


def test_uniform_between_normals() -> None:
    ours, theirs = noise.TorchCpu(3), torch.Generator("cpu").manual_seed(3)
    for size in (1, 5, 16, 2, 33, 1):
        np.testing.assert_allclose(ours.normal((size,)), torch.randn(size, generator=theirs), atol=4e-6)
        assert ours.uniform() == torch.rand((), dtype=torch.float64, generator=theirs).item()


def test_uniform_on_cuda_by_curand_definition() -> None:
    """Of Random123's first vector, 6627e8d5 e169c58d: the low 21 bits of the first, under the xor of both."""
    bits = f"{0xE169C58D:032b}" + "0" * 21
    low = f"{0x6627E8D5:032b}"
    both = bits[:21] + "".join(str(int(a != b)) for a, b in zip(bits[21:], low, strict=True))
    assert noise.TorchCuda(0).uniform() == (int(both, 2) + 0.5) / 2**53


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("seed", [0, 2**40 + 3])
def test_uniform_is_torch_rand_on_cuda(seed: int) -> None:
    ours, theirs = noise.TorchCuda(seed), torch.Generator("cuda").manual_seed(seed)
    for size in (1, 300, 7):
        ours.normal((size,))
        torch.randn(size, generator=theirs, device="cuda")
        for _ in range(20):
            assert ours.uniform() == torch.rand((), dtype=torch.float64, generator=theirs, device="cuda").item()


# ---------------------------------------------------------------- rules


def histories(seed: int, length: int) -> Scores:
    return np.random.default_rng(seed).integers(0, 6, (3, length))


ROWS: dict[str, tuple[Callable[[Scores, Scores], None], Callable[[], Any]]] = {
    "repetition_penalty": (
        lambda scores, tokens: logits.repetition_penalty(scores, tokens, 1.3),
        lambda: peers.RepetitionPenaltyLogitsProcessor(1.3),
    ),
    **{
        f"no_repeat_ngram {size}": (
            lambda scores, tokens, size=size: logits.no_repeat_ngram(scores, tokens, size),
            lambda size=size: peers.NoRepeatNGramLogitsProcessor(size),
        )
        for size in (1, 2, 3)
    },
    "min_new_tokens": (
        lambda scores, _: logits.forbid(scores, ENDS),
        lambda: peers.MinNewTokensLengthLogitsProcessor(0, 99, list(ENDS)),
    ),
    "suppressed": (lambda scores, _: logits.forbid(scores, ENDS), lambda: peers.SuppressTokensLogitsProcessor(ENDS)),
    "begin_suppressed": (
        lambda scores, tokens: logits.forbid(scores, ENDS) if tokens.shape[1] == 1 else None,
        lambda: peers.SuppressTokensAtBeginLogitsProcessor(ENDS, 1),
    ),
    "forced": (
        lambda scores, tokens: logits.force(scores, 3) if tokens.shape[1] == 1 else None,
        lambda: peers.ForcedBOSTokenLogitsProcessor(3),
    ),
    "forced_end": (
        lambda scores, tokens: logits.force(scores, 3) if tokens.shape[1] == 9 else None,
        lambda: peers.ForcedEOSTokenLogitsProcessor(10, 3),
    ),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("size", [VOCABULARY, 4])  # of 4, some of the history is not in the vocabulary
def test_rule(name: str, size: int) -> None:
    ours, theirs = ROWS[name]
    if size == 4 and name == "forced":
        pytest.skip("a forced token is in the vocabulary")
    for seed, length in itertools.product(range(10), (1, 2, 3, 9, 40)):
        scores = np.random.default_rng(seed).normal(0, 3, (3, size)).astype(np.float32)
        tokens = histories(seed, length)
        expected = theirs()(torch.from_numpy(tokens), torch.from_numpy(scores.copy())).numpy()
        ours(scores, tokens)
        np.testing.assert_array_equal(scores, expected)


WARPERS: dict[str, tuple[Callable[[Scores, float], Scores], Callable[[float], Any], Sequence[float]]] = {
    "temperature": (logits.temperature, lambda x: peers.TemperatureLogitsWarper(x), (0.1, 0.7, 1.0, 1.9)),
    "top_k": (lambda s, x: logits.top_k(s, int(x)), lambda x: peers.TopKLogitsWarper(int(x)), (1, 2, 7, 50, 10_000)),
    "top_p": (logits.top_p, lambda x: peers.TopPLogitsWarper(x), (0.0, 0.05, 0.5, 0.9, 0.999)),
    "min_p": (logits.min_p, lambda x: peers.MinPLogitsWarper(x), (0.01, 0.1, 0.5, 1.0)),
    "typical_p": (logits.typical_p, lambda x: peers.TypicalLogitsWarper(x), (0.05, 0.2, 0.5, 0.9, 0.99)),
}


@pytest.mark.parametrize("name", WARPERS)
def test_warper(name: str) -> None:
    ours, theirs, values = WARPERS[name]
    for value, size, spread, seed in itertools.product(values, (1, 5, 400, 3000), (0.3, 4), range(3)):
        rng = np.random.default_rng(seed)
        scores = rng.normal(0, spread, size).astype(np.float32)
        if seed == 2:  # as it is after other warpers and rules
            scores[rng.random(size) < 0.6] = -np.inf
            scores[0] = 1
        expected = theirs(value)(None, torch.from_numpy(scores)[None])[0].numpy()
        np.testing.assert_array_equal(ours(scores, value), expected, err_msg=f"{value} {size} {spread} {seed}")


# ---------------------------------------------------------------- whole texts


@pytest.fixture(scope="module")
def gpt2() -> Any:
    torch.manual_seed(20)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=40, n_embd=16, n_layer=1, n_head=2, initializer_range=0.8,
        bos_token_id=START, eos_token_id=list(ENDS), pad_token_id=PAD, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def bart() -> Any:
    torch.manual_seed(4)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, max_position_embeddings=40, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, init_std=0.8,
        bos_token_id=START, eos_token_id=list(ENDS), pad_token_id=PAD, decoder_start_token_id=START,
        forced_eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config).eval()


@pytest.fixture(params=["gpt2", "bart"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def inputs(batch: int, seed: int, length: int = 4) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, VOCABULARY - 4, (batch, length)))


def theirs(model: Any, ids: Any, **options: Any) -> list[list[int]]:
    """New tokens of every result, with the padding."""
    with torch.no_grad():
        texts = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, **options)
    return texts[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()


def ours(model: Any, ids: Any, rules: Rules, **options: Any) -> list[list[int]]:
    """The same from mmrt."""
    texts = [result.tokens.tolist() for result in completions(model, ids, rules, **options)]
    return [text + [PAD] * (max(map(len, texts)) - len(text)) for text in texts]


def completions(model: Any, ids: Any, rules: Rules, **options: Any) -> list[Completion]:
    """A search, each step's logits made from the whole texts."""
    decodes = model.config.is_encoder_decoder
    starts = torch.full((len(ids), 1), START) if decodes else ids
    found = search(rules, list(starts.numpy()), **options)
    copies = len(found.tokens) // len(ids)
    texts, ids = starts.repeat_interleave(copies, 0), ids.repeat_interleave(copies, 0)
    while not found.done:
        with torch.no_grad():
            output = model(ids, decoder_input_ids=texts, use_cache=False) if decodes else model(texts, use_cache=False)
        rows = found.advance(output.logits[:, -1].numpy())
        if rows is not None:
            texts = texts[rows]
        texts = torch.cat([texts, torch.tensor(found.tokens)[:, None]], 1)
    return found.results()


@contextmanager
def counted(model: Any) -> Iterator[list[None]]:
    """Something for every call of the model."""
    calls: list[None] = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(None))
    yield calls
    hook.remove()


def assert_same(model: Any, rules: dict[str, Any], options: dict[str, Any], seeds: Sequence[int] = (0,)) -> None:
    kept = Rules(LENGTH, **{"ends": ENDS, "pad": PAD, **rules})
    options = {"do_sample": False, "num_beams": kept.beams, "num_return_sequences": kept.returned, **options}
    for batch, seed in ((1, 0), *((4, seed) for seed in seeds)):
        ids = inputs(batch, seed)
        with counted(model) as our_calls:
            found = ours(model, ids, kept)
        with counted(model) as their_calls:
            assert found == theirs(model, ids, **options), (batch, seed)
        assert len(our_calls) == len(their_calls), (batch, seed)


RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name, for mmrt, for transformers
    "plain": ({}, {}),
    "repetition_penalty": ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    "no_repeat_ngram": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    "min_new_tokens": ({"min_new_tokens": 7}, {"min_new_tokens": 7}),
    "forced_end": ({"forced_end": 5}, {"forced_eos_token_id": 5}),
    "suppressed": ({"suppressed": (1, 2, 17)}, {"suppress_tokens": [1, 2, 17]}),
    "begin_suppressed": ({"begin_suppressed": tuple(range(12))}, {"begin_suppress_tokens": list(range(12))}),
    "one end": ({"ends": ENDS[:1]}, {"eos_token_id": ENDS[0]}),
    "all": (
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 3, "suppressed": (4,)},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 3, "suppress_tokens": [4]},
    ),
}


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("name", RULES)
def test_rules(model: Any, name: str, beams: int) -> None:
    rules, options = RULES[name]
    assert_same(model, {**rules, "beams": beams}, options)


@pytest.mark.parametrize("beams", [1, 3])
def test_forced(bart: Any, beams: int) -> None:
    """The language token of m2m100, and a first token that may not come after it."""
    rules = {"forced": (7,), "begin_suppressed": tuple(range(12)), "beams": beams, "forced_end": 5}
    options = {"forced_bos_token_id": 7, "begin_suppress_tokens": list(range(12)), "forced_eos_token_id": 5}
    assert_same(bart, rules, options)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize(("length_penalty", "returned"), [(0.6, 3), (1.0, 1), (2.0, 3), (0.0, 3), (-1.0, 1)])
def test_ends_of_beams(model: Any, early_stopping: Any, length_penalty: float, returned: int) -> None:
    options = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    assert_same(model, {"beams": 4, "returned": returned, **options}, options, seeds=(0, 1))


def test_scores_of_beams(model: Any) -> None:
    options = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.6, "do_sample": False}
    ids = inputs(4, 0)
    with torch.no_grad():
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
    rules = Rules(LENGTH, ends=ENDS, pad=PAD, beams=3, returned=3, length_penalty=0.6)
    scores = [result.score for result in completions(model, ids, rules)]
    np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_stopping_by_a_predicate(model: Any, beams: int) -> None:
    """A text stops where its last two tokens add up to a multiple of 4, which both see in all candidates."""

    class Adds(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, tokens: Any, scores: Any, **_: Any) -> Any:
            first = 1 if model.config.is_encoder_decoder else 4
            return (tokens[:, first:].sum(dim=1) % 4 == 0) & (tokens.shape[1] - first > 2)

    for seed in range(2):
        ids = inputs(4, seed)
        rules = Rules(LENGTH, ends=ENDS, pad=PAD, beams=beams, returned=beams)
        found = ours(model, ids, rules, stops=lambda _, tokens: len(tokens) > 2 and tokens.sum() % 4 == 0)
        options = {"num_beams": beams, "num_return_sequences": beams, "do_sample": False}
        assert found == theirs(model, ids, stopping_criteria=[Adds()], **options)


@pytest.mark.parametrize("beams", [1, 4])
def test_the_models_do_end(model: Any, beams: int) -> None:
    """Or nothing above tells an end from another token: some texts end early, by either end, and some do not."""
    rules = Rules(LENGTH, ends=ENDS, pad=PAD, beams=beams)
    texts = [text for seed in (0, 1) for text in ours(model, inputs(4, seed), rules)]
    assert {end for end in ENDS for text in texts if end in text[:-1]} == set(ENDS)
    assert any(not {*text} & {*ENDS, PAD} for text in texts)
    assert len({tuple(text) for text in texts}) > 6
