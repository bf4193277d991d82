"""mmrt.runtime.noise against torch itself, against published numbers, and against its own definition."""

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrt.runtime import noise

AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
SEEDS = [0, 1, 7, 1234, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**53 + 1, 2**63, 2**64 - 1, -1, -(2**32), -(2**63)]

seeds = st.integers(-(2**63), 2**64 - 1)


def torch_cpu(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def assert_same(ours: np.ndarray, theirs: torch.Tensor) -> None:
    """Bit for bit where torch runs the code that noise.py writes out, else as near as libm comes to that."""
    assert ours.dtype == np.float32
    if AVX2:
        np.testing.assert_array_equal(ours, theirs.numpy())
    else:
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=4e-6)


# TorchCpu


@pytest.mark.parametrize("seed", SEEDS)
def test_cpu_seed(seed: int) -> None:
    assert_same(noise.TorchCpu(seed).normal((4, 8)), torch.randn(4, 8, generator=torch_cpu(seed)))


def test_cpu_every_small_size() -> None:
    for size in range(201):
        assert_same(noise.TorchCpu(size).normal((size,)), torch.randn(size, generator=torch_cpu(size)))


@pytest.mark.parametrize(
    "shape", [(), (0,), (2, 0, 3), (1, 4, 64, 64), (12_347,), (3, 77, 131), (65_537,), (1_000_003,)]
)
def test_cpu_shape(shape: tuple[int, ...]) -> None:
    ours = noise.TorchCpu(5).normal(shape)
    assert ours.shape == shape
    assert_same(ours, torch.randn(shape, generator=torch_cpu(5)))


@given(seed=seeds, sizes=st.lists(st.integers(0, 70) | st.sampled_from([624, 1000, 40_001]), max_size=12))
@settings(max_examples=150, deadline=None)
def test_cpu_any_sequence(seed: int, sizes: list[int]) -> None:
    ours, theirs = noise.TorchCpu(seed), torch_cpu(seed)
    for size in sizes:
        assert_same(ours.normal((size,)), torch.randn(size, generator=theirs))


def test_cpu_spare_normal_waits_while_large_draws_pass() -> None:
    drawn = noise.TorchCpu(3)
    first, _, second = drawn.normal((1,)), drawn.normal((16,)), drawn.normal((1,))
    np.testing.assert_array_equal(np.concatenate([first, second]), noise.TorchCpu(3).normal((2,)))


@given(seed=seeds, blocks=st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_cpu_whole_blocks_split_anywhere(seed: int, blocks: list[int]) -> None:
    split = noise.TorchCpu(seed)
    parts = [split.normal((16 * block,)) for block in blocks]
    np.testing.assert_array_equal(np.concatenate(parts), noise.TorchCpu(seed).normal((16 * sum(blocks),)))


@given(seed=seeds, cuts=st.lists(st.integers(0, 15), max_size=5))
@settings(max_examples=50, deadline=None)
def test_cpu_small_draws_split_anywhere(seed: int, cuts: list[int]) -> None:
    split = noise.TorchCpu(seed)
    parts = [split.normal((end - start,)) for start, end in pairwise([0, *sorted(cuts), 15])]
    np.testing.assert_array_equal(np.concatenate(parts), noise.TorchCpu(seed).normal((15,)))


def test_cpu_batch_is_its_pictures_drawn_singly() -> None:
    single = noise.TorchCpu(9)
    pictures = [single.normal((1, 4, 32, 32)) for _ in range(3)]
    np.testing.assert_array_equal(np.concatenate(pictures), noise.TorchCpu(9).normal((3, 4, 32, 32)))


# TorchCuda


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, words: str) -> None:
    """The vectors that Random123 publishes (kat_vectors, philox4x32 10)."""
    c, k = ([int(word, 16) for word in text.split()] for text in (counter, key))
    assert " ".join(f"{int(word):08x}" for word in noise.philox((c[0], c[1], c[2], c[3]), (k[0], k[1]))) == words


def test_cuda_published_numbers() -> None:
    """torch.randn(3, 4, device="cuda") for seed 0, as stable-diffusion-webui's modules/rng_philox.py quotes it."""
    published = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    np.testing.assert_allclose(noise.TorchCuda(0).normal((3, 4)), published, rtol=0, atol=2e-6)


def test_cuda_skips_what_it_would_draw() -> None:
    drawn, skipped = noise.TorchCuda(5, 512), noise.TorchCuda(5, 512)
    for _ in range(3):
        drawn.normal((7, 333))
    skipped.skip(7 * 333, 3)
    np.testing.assert_array_equal(drawn.normal((40,)), skipped.normal((40,)))


def grid_stride(seed: int, offset: int, size: int, max_threads: int) -> tuple[np.ndarray, int]:
    """Run torch's CUDA kernel thread by thread: the normals in double precision, and the next offset, in words."""
    threads = 256 * min(max_threads // 256, -(-size // 256))
    rounds = (size - 1) // (threads * 4) + 1
    values = np.full(rounds * threads * 4, np.nan)
    for index in range(threads):
        for turn in range(rounds):
            counter = (offset // 4 + turn, 0, index, 0)
            words = [int(word) for word in noise.philox(counter, (seed & 0xFFFFFFFF, seed >> 32))]
            for half in (0, 2):
                u, v = (float(np.float32(word)) * 2**-32 + 2**-33 for word in words[half : half + 2])
                radius = math.sqrt(-2 * math.log(np.float32(u)))
                angle = float(np.float32(v * float(np.float32(2 * math.pi))))
                start = turn * threads * 4 + index + threads * half
                values[start], values[start + threads] = radius * math.sin(angle), radius * math.cos(angle)
    return values[:size], offset + 4 * rounds


def test_cuda_is_the_kernel_thread_by_thread() -> None:
    seed, offset, ours = 2**40 + 11, 0, noise.TorchCuda(2**40 + 11, max_threads=600)
    for size in (1, 255, 257, 512, 513, 1025, 1600, 2048, 2049, 5000, 3):
        theirs, offset = grid_stride(seed, offset, size, max_threads=600)
        np.testing.assert_allclose(ours.normal((size,)), theirs, rtol=0, atol=5e-7, err_msg=f"{size}")


@pytest.mark.parametrize("size", [511, 513, 40_000, 200_005])
def test_cuda_chunks_do_not_show(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for chunk in (512, noise.CHUNK):
        monkeypatch.setattr(noise, "CHUNK", chunk)
        draws.append(noise.TorchCuda(4, max_threads=40_000).normal((size,)))
    np.testing.assert_array_equal(*draws)


@given(seed=seeds, sizes=st.lists(st.integers(0, 3000), max_size=6))
@settings(max_examples=50, deadline=None)
def test_cuda_draw_depends_only_on_how_much_came_before(seed: int, sizes: list[int]) -> None:
    """Draws that one round of threads can serve all count one step, whatever their size; an empty one counts none."""
    drawn, ones = noise.TorchCuda(seed), noise.TorchCuda(seed)
    for size in sizes:
        ours = drawn.normal((size,))
        if size:
            np.testing.assert_array_equal(ones.normal((1,)), ours[:1])
    np.testing.assert_array_equal(drawn.normal((2, 5)), ones.normal((2, 5)))


@pytest.mark.parametrize("shape", [(5, 7), (2, 3), (40, 192), (1, 33), (33, 1)])
def test_scattered_draws_are_those_of_transposed_tensors(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    generator, drawn = torch.Generator().manual_seed(5), noise.TorchCpu(5)
    for size in (3, 20):  # the second of a pair that is left over waits, whatever comes between
        wanted = torch.randn(size, generator=generator), torch.empty(shape).T.normal_(generator=generator).T
        np.testing.assert_array_equal(drawn.normal((size,)), wanted[0].numpy())
        np.testing.assert_array_equal(drawn.scattered(shape), wanted[1].numpy())


def test_cuda_card_matters_only_to_larger_draws() -> None:
    small, large = noise.TorchCuda(6, max_threads=1024), noise.TorchCuda(6)
    np.testing.assert_array_equal(small.normal((1024,)), large.normal((1024,)))
    assert (small.normal((1025,)) != large.normal((1025,))).any()


def test_cuda_seed_is_64_bits() -> None:
    np.testing.assert_array_equal(noise.TorchCuda(-1).normal((9,)), noise.TorchCuda(2**64 - 1).normal((9,)))
    assert (noise.TorchCuda(1).normal((9,)) != noise.TorchCuda(2**32 + 1).normal((9,))).all()


def test_cuda_needs_one_block_of_threads() -> None:
    with pytest.raises(ValueError, match="max_threads is 255, wanted at least 256"):
        noise.TorchCuda(0, max_threads=255)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("seed", [0, 1234, 2**40 + 3, -1])
def test_cuda_matches_torch(seed: int) -> None:
    card = torch.cuda.get_device_properties(0)
    ours = noise.TorchCuda(seed, card.multi_processor_count * card.max_threads_per_multi_processor)
    theirs = torch.Generator("cuda").manual_seed(seed)
    for size in (1, 15, 0, 4 * 64 * 64, 300, 1_000_003, 4 * 128 * 128, 5_000_000, 7):
        expected = torch.randn(size, generator=theirs, device="cuda").cpu().numpy()
        np.testing.assert_allclose(ours.normal((size,)), expected, rtol=0, atol=1e-5, err_msg=f"{size}")


# both


@pytest.mark.parametrize("name", noise.GENERATORS)
@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64])
def test_seed_out_of_range(name: str, seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed is {seed}, wanted -2\*\*63 \.\. 2\*\*64 - 1"):
        noise.GENERATORS[name](seed)
    with pytest.raises((RuntimeError, ValueError, OverflowError)):
        torch_cpu(seed)


@pytest.mark.parametrize("name", noise.GENERATORS)
def test_is_normal(name: str) -> None:
    values = np.sort(noise.GENERATORS[name](11).normal((400, 1000)).ravel().astype(np.float64))
    moments = [np.mean(values**power) for power in range(1, 7)]
    deviations = [1, 2, 15, 96, 945, 10_170]  # variance of x**power
    for power, (moment, variance) in enumerate(zip(moments, deviations, strict=True), 1):
        expected = math.prod(range(power - 1, 0, -2)) if power % 2 == 0 else 0
        assert abs(moment - expected) < 4 * math.sqrt(variance / values.size), power
    below = 0.5 * np.array([math.erfc(-value / math.sqrt(2)) for value in values[::97]])
    assert np.abs(below - np.arange(values.size)[::97] / values.size).max() < 1.63 / math.sqrt(values.size)  # 1 %


@pytest.mark.parametrize(
    ("name", "digest"),
    [("cpu", "d8f7fbb4f76c60a6"), ("cuda", "aa320e8502b5c81a")],
)
def test_same_bits_on_every_machine(name: str, digest: str) -> None:
    assert hashlib.sha256(noise.GENERATORS[name](2024).normal((1, 4, 64, 64)).tobytes()).hexdigest()[:16] == digest


def test_extremes_of_the_uniforms_are_finite() -> None:
    low, high = np.zeros(1, np.uint32), np.full(1, 2**32 - 1, np.uint32)
    for x in (low, high):
        for y in (low, high):
            assert np.isfinite(noise._curand_box_muller(x, y)).all()
    extremes = np.array([[0, 1 - 2**-24]] * 8, np.float32).T.ravel()
    for uniforms in (extremes, extremes[::-1].copy()):
        noise._make_normal(uniforms)
        assert np.isfinite(uniforms).all()
    assert uniforms[0] == pytest.approx(math.sqrt(48 * math.log(2)), rel=1e-6)
