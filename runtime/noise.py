"""Normal noise as `torch.randn` draws it, without torch.

A diffusion picture is its seed: the same seed must give the noise that the source pipeline started from. torch has two
generators that agree in nothing, so both are here:

- `TorchCpu`, `torch.Generator("cpu")`: a Mersenne twister. The integers are torch's, and so are the floats wherever
  torch takes its AVX2 code, which is every x86 processor that has AVX2. (Elsewhere it goes through libm, which is up to
  3e-6 away.)
- `TorchCuda`, `torch.Generator("cuda")`: Philox4x32-10, each GPU thread with a counter of its own. The integers are
  torch's; the floats differ by what the GPU's approximate `__sincosf` is off, a few 1e-6 by CUDA's manual.

Logarithm, sine and cosine are written out, in Cephes' single precision, as torch has them: `np.log` and `np.sin` give
other last bits, and other ones on other processors. What is here gives the same bits on every machine.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]

CHUNK = 1 << 15  # pairs of uniforms a pass, so that the temporaries stay in a core's cache
TWO_PI = np.float32(2 * math.pi)
SQRT_HALF_BITS = 0x3F3504F3  # of float32 sqrt(0.5)


# Cephes' logf.c and sinf.c (S. Moshier), highest power first; log(2) and pi / 4 in parts of few bits.
LOG = np.array([
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
], np.float32)  # fmt: skip
LOG_2 = np.array([0.693359375, -2.12194440e-4], np.float32)
SIN = np.array([-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1], np.float32)
COS = np.array([2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2], np.float32)
QUARTER_PI = np.array([0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8], np.float32)


class Noise(Protocol):
    """A seeded source of normal noise, which goes on where the last draw ended."""

    def normal(self, shape: tuple[int, ...]) -> F32:
        """Draw float32 of `shape` with mean 0 and variance 1."""

    def scattered(self, shape: tuple[int, ...]) -> F32:
        """Draw as `normal`, but as torch does into a tensor that lies so in memory and is not contiguous."""

    def uniform(self) -> float:
        """Draw a double of [0, 1)."""


class TorchCpu:
    """The noise of `torch.Generator("cpu").manual_seed(seed)`.

    seed: -2**63 .. 2**64 - 1, of which the twister takes the low 32 bits; ValueError outside of that.
    Source: ATen's native/cpu/DistributionTemplates.h (normal_fill), core/DistributionsHelper.h (normal_distribution).
    """

    def __init__(self, seed: int) -> None:
        # RandomState, not Generator: its seeding and its stream are frozen (NEP 19).
        self._twister = np.random.RandomState(_to_uint64(seed) & 0xFFFFFFFF)
        self._spare: list[float] = []

    def normal(self, shape: tuple[int, ...]) -> F32:
        """Draw what `torch.randn(shape, dtype=torch.float32, generator=...)` gives next.

        From 16 elements on, 16 uniforms become 8 + 8 normals, and a size that 16 does not divide has its last 16 drawn
        anew. Below 16, normals are made two at a time in double precision, and a second one that is left over waits for
        the next draw below 16, whatever comes between.
        """
        size = math.prod(shape)
        if size < 16:
            return np.array(self._few(size), np.float32).reshape(shape)
        noise = self._uniform(size)
        _make_normal(noise[: size // 16 * 16])
        if size % 16:
            noise[-16:] = self._uniform(16)
            _make_normal(noise[-16:])
        return noise.reshape(shape)

    def scattered(self, shape: tuple[int, ...]) -> F32:
        """Draw what `torch.randn_like(x, generator=...)` gives next, x being of `shape` in memory and transposed.

        Of whatever size, that is made as draws below 16 are. A transposed tensor of one row or column is contiguous.
        """
        if min(shape, default=1) == 1:
            return self.normal(shape)
        return np.array(self._few(math.prod(shape)), np.float32).reshape(shape)

    def uniform(self) -> float:
        """Draw what `torch.rand((), dtype=torch.float64, generator=...)` gives next: 53 bits of two words.

        A normal that is left over from a draw below 16 goes on waiting.
        """
        high, low = self._twister.randint(0, 1 << 32, 2, np.uint32).tolist()
        return _to_double(high, low)

    def _uniform(self, size: int) -> F32:
        """Draw float32 (size,) in [0, 1): the low 24 bits of a word each."""
        words = self._twister.randint(0, 1 << 24, size, np.uint32)
        return words.astype(np.float32) * np.float32(2**-24)

    def _few(self, size: int) -> list[float]:
        normals = self._spare
        pairs = (size - len(normals) + 1) // 2
        words = self._twister.randint(0, 1 << 32, (pairs, 2, 2), np.uint32).astype(np.uint64)
        uniform = (words[:, :, 0] << np.uint64(32) | words[:, :, 1]) & np.uint64((1 << 53) - 1)
        turns, heights = (uniform * 2**-53).T
        angles = (2 * math.pi * turns).tolist()
        radii = np.sqrt(
            -2 * np.array([*map(math.log1p, (-heights).tolist())])
        ).tolist()  # NumPy's own differ by machine
        for radius, angle in zip(radii, angles, strict=True):
            normals += [radius * math.cos(angle), radius * math.sin(angle)]
        self._spare = normals[size:]
        return normals[:size]


class TorchCuda:
    """The noise of `torch.Generator("cuda").manual_seed(seed)`.

    seed: -2**63 .. 2**64 - 1; ValueError outside of that.
    max_threads: multiprocessors x threads on each, of the card to be like: A100 108 x 2048 (the default), H100 SXM
        132 x 2048, RTX 4090 128 x 1536, RTX 3090 82 x 1536, T4 40 x 1024. It matters only to a draw of more elements
        than that, which torch itself fills differently from card to card. ValueError below 256, one block of threads.
    offset: what was drawn before, in fours; torch's own counts single words.
    Source: ATen's native/cuda/DistributionTemplates.h, and curand_init and curand_normal4 of cuRAND's device API.
    """

    def __init__(self, seed: int, max_threads: int = 108 * 2048, offset: int = 0) -> None:
        if max_threads < 256:
            raise ValueError(f"max_threads is {max_threads}, wanted at least 256, one block of threads")
        seed = _to_uint64(seed)
        self._key = seed & 0xFFFFFFFF, seed >> 32
        self.seed, self.max_threads, self.offset = seed, max_threads // 256 * 256, offset

    def normal(self, shape: tuple[int, ...]) -> F32:
        """Draw what `torch.randn(shape, dtype=torch.float32, device="cuda", generator=...)` gives next.

        Every thread makes four normals a round, and they land one row of threads apart; a draw that ends within a round
        drops the rest of it.
        """
        size = math.prod(shape)
        threads = self.threads(size, self.max_threads)
        rows = -(-size // threads)
        noise = np.empty((rows, threads), np.float32)
        for start in range(0, threads, CHUNK):
            part = slice(start, min(start + CHUNK, threads))
            thread = np.arange(part.start, part.stop, dtype=np.uint64)
            for row in range(0, rows, 2):
                if row % 4 == 0:
                    words = philox((self.offset + row // 4, 0, thread, 0), self._key)
                noise[row : row + 2, part] = _curand_box_muller(*words[row % 4 : row % 4 + 2])[: rows - row]
        self.skip(size, 1)
        return noise.reshape(-1)[:size].reshape(shape)

    def skip(self, size: int, draws: int) -> None:
        """Go on where so many draws of `size` normals would end."""
        self.offset += draws * self.fours(size, self.max_threads)

    @staticmethod
    def threads(size: int, max_threads: int) -> int:
        """How many threads share in a draw of `size` normals."""
        return max(1, min(size, max_threads // 256 * 256))

    @staticmethod
    def fours(size: int, max_threads: int) -> int:
        """How far a draw of `size` normals moves the offset."""
        return -(-size // (4 * TorchCuda.threads(size, max_threads)))

    def scattered(self, shape: tuple[int, ...]) -> F32:
        """Draw as `normal`: each thread writes where its elements lie in memory."""
        return self.normal(shape)

    def uniform(self) -> float:
        """Draw what `torch.rand((), dtype=torch.float64, device="cuda", generator=...)` gives next.

        53 bits of the first two of four words, and half a bit more; 1, to which the highest are rounded, becomes 0.
        """
        low, high, _, _ = (int(word) for word in philox((self.offset, 0, 0, 0), self._key))
        self.offset += 1
        value = (low ^ high << 21) * 2**-53 + 2**-54
        return value if value < 1 else 0.0


GENERATORS: dict[str, Callable[[int], Noise]] = {"cpu": TorchCpu, "cuda": TorchCuda}


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> list[NDArray[np.uint32]]:
    """Encrypt counters to four random words each: Philox4x32-10.

    counter: four words, lowest first, each an int or an array of uint64, all below 2**32 and broadcast together.
    key: two words. Returns four uint32 arrays of the counters' shape.
    Source: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3 (SC 2011), section 3.3.
    """
    a, b, c, d = (word.copy() for word in np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in counter)))
    left, right = key
    for _ in range(10):
        a *= np.uint64(0xD2511F53)
        c *= np.uint64(0xCD9E8D57)
        b ^= (c >> np.uint64(32)) ^ np.uint64(left)
        d ^= (a >> np.uint64(32)) ^ np.uint64(right)
        a &= np.uint64(0xFFFFFFFF)
        c &= np.uint64(0xFFFFFFFF)
        a, b, c, d = b, c, d, a
        left, right = (left + 0x9E3779B9) & 0xFFFFFFFF, (right + 0xBB67AE85) & 0xFFFFFFFF
    return [word.astype(np.uint32) for word in (a, b, c, d)]


def _to_uint64(seed: int) -> int:
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed}, wanted -2**63 .. 2**64 - 1")
    return seed % 2**64


def _to_double(high: int, low: int) -> float:
    """Return the low 53 bits of two words as a double in [0, 1)."""
    return float(((high << 32 | low) & ((1 << 53) - 1)) * 2**-53)


def _make_normal(uniforms: F32) -> None:
    """Turn float32 (16 n,) in [0, 1) into normals, in place: of every 16, element j goes with element j + 8."""
    for start in range(0, uniforms.size, 2 * CHUNK):
        pairs = uniforms[start : start + 2 * CHUNK].reshape(-1, 2, 8)
        pairs[:, 1], pairs[:, 0] = _box_muller(1 - pairs[:, 0], TWO_PI * pairs[:, 1])


def _curand_box_muller(x: NDArray[np.uint32], y: NDArray[np.uint32]) -> tuple[F32, F32]:
    step = TWO_PI * np.float32(2**-32)
    uniform = _multiply_add(x.astype(np.float32), 2**-32, 2**-33)
    return _box_muller(uniform, _multiply_add(y.astype(np.float32), step, step / 2))


def _box_muller(uniform: F32, angle: F32) -> tuple[F32, F32]:
    """Take two normals, by sine and by cosine, from float32 in (0, 1] and an angle in [0, 2 pi]."""
    radius = np.sqrt(-2 * _log(uniform))
    sine, cosine = _sincos(angle)
    return radius * sine, radius * cosine


def _multiply_add(a: F32, b: Floats | np.float32 | float, c: Floats | np.float32 | float) -> F32:
    """Return float32 a * b + c, for b and c that are float32 in value, with the rounding of a fused multiply-add.

    The product is exact in double; that the sum is rounded twice shows in one of some 1e9.
    """
    total = a.astype(np.float64)
    total *= b
    total += c
    return total.astype(np.float32)


def _log(x: F32) -> F32:
    """Return the logarithm of normal float32 above 0."""
    bits = x.view(np.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    x = (bits - (exponent << 23)).view(np.float32) - 1  # sqrt(0.5) - 1 .. sqrt(2) - 1
    wide, square, power = x.astype(np.float64), x * x, exponent.astype(np.float32)
    y = np.full_like(x, LOG[0])
    for coefficient in LOG[1:]:
        y = _multiply_add(y, wide, coefficient)
    y = _multiply_add(y * x, square, power * LOG_2[1])
    return _multiply_add(power, LOG_2[0], x + _multiply_add(square, -0.5, y))


def _sincos(x: F32) -> tuple[F32, F32]:
    """Return sine and cosine of float32 from 0 to 8192."""
    octant = ((x * np.float32(4 / math.pi)).astype(np.int32) + 1) & ~1
    turns = octant.astype(np.float32)
    for part in QUARTER_PI:
        x = _multiply_add(turns, -part, x)
    square = x * x
    wide = square.astype(np.float64)
    s = _multiply_add(_multiply_add(np.full_like(x, SIN[0]), wide, SIN[1]), wide, SIN[2]) * square
    c = _multiply_add(_multiply_add(np.full_like(x, COS[0]), wide, COS[1]), wide, COS[2]) * square
    sine = _multiply_add(s, x, x).view(np.int32)
    cosine = (_multiply_add(c, wide, square * np.float32(-0.5)) + 1).view(np.int32)
    swap = (sine ^ cosine) & -((octant >> 1) & 1)
    sine ^= swap ^ ((octant & 4) << 29)
    cosine ^= swap ^ (((octant + 2) & 4) << 29)
    return sine.view(np.float32), cosine.view(np.float32)
