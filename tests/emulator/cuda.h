// What CUDA C++ gives a kernel, for g++: the threads of a block are fibers, and a grid's blocks run one by one.
//
// A fiber runs until it waits: at __syncthreads for its block, at a shuffle or vote for its warp. Which goes on next, and
// the order of the blocks, follow from a seed, so that what a kernel forgets to wait for shows in its numbers. Fibers
// that wait for one another in vain, as when only a part of a block meets a barrier, are an error, and so are threads
// that left before others wait. Kernels take addresses and ints only: each then has a register or 8 bytes of its own.

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#define EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)
#define DYNAMIC_SHARED(Type, name) Type *name = (Type *)emulator::dynamic

struct dim3 { unsigned int x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum class State { ready, at_barrier, at_warp, done };

struct Fiber {
    ucontext_t entry;
    jmp_buf place;
    bool started;
    State state;
    int turn;  // which of the warp's two sets of slots its next exchange takes
};

static const size_t STACK = 32 << 10;
static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static std::vector<uint64_t> slots;  // [turn][thread]
static jmp_buf scheduler;
static ucontext_t unused;
static int current;
static size_t start, stride;  // the first fiber, and how far the next one is
static bool greedy;           // whether a warp goes on as far as it can before another does
static void (*kernel)();
static const int64_t *arguments;
alignas(16) static char dynamic[48 << 10];

typedef void Kernel(
    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

static void run() {
    const int64_t *a = arguments;
    ((Kernel *)kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14],
                       a[15], a[16], a[17], a[18], a[19], a[20], a[21], a[22], a[23]);
    fibers[current].state = State::done;
    _longjmp(scheduler, 1);
}

__attribute__((noinline)) static void wait(State state) {
    fibers[current].state = state;
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

__attribute__((noinline)) static void resume(int fiber) {
    current = fiber;
    threadIdx = {unsigned(fiber) % blockDim.x, unsigned(fiber) / blockDim.x % blockDim.y,
                 unsigned(fiber) / blockDim.x / blockDim.y};
    if (_setjmp(scheduler)) return;
    if (fibers[fiber].started) _longjmp(fibers[fiber].place, 1);
    fibers[fiber].started = true;
    setcontext(&fibers[fiber].entry);
}

// A fiber has come to a barrier of `count` of them; the last one lets all go on.
static void arrive(int &arrived, size_t first, size_t count) {
    if (size_t(++arrived) < count) return;
    arrived = 0;
    for (size_t i = first; i < first + count; ++i) fibers[i].state = State::ready;
}

static size_t following(size_t fiber, size_t threads) {
    const size_t warp = fiber / 32 * 32;
    for (size_t i = warp; greedy && i < std::min(warp + 32, threads); ++i)
        if (fibers[i].state == State::ready) return i;
    fiber += stride;
    return fiber < threads ? fiber : fiber - threads;
}

static bool block(size_t threads) {
    for (size_t i = 0; i < threads; ++i) {
        Fiber &fiber = fibers[i];
        fiber.started = false;
        fiber.state = State::ready;
        fiber.turn = 0;
        getcontext(&fiber.entry);
        fiber.entry.uc_stack = {&stacks[i * STACK], 0, STACK};
        fiber.entry.uc_link = &unused;
        makecontext(&fiber.entry, run, 0);
    }
    int at_barrier = 0;
    std::vector<int> at_warp((threads + 31) / 32);
    size_t done = 0, next = start, idle = 0;
    while (done < threads) {
        if (fibers[next].state == State::ready) {
            resume(next);
            idle = 0;
            if (fibers[next].state == State::done) ++done;
            if (fibers[next].state == State::at_barrier) arrive(at_barrier, 0, threads);
            if (fibers[next].state == State::at_warp) {
                const size_t warp = next / 32;
                arrive(at_warp[warp], 32 * warp, std::min(size_t(32), threads - 32 * warp));
            }
        } else if (++idle > 2 * threads) {
            return false;
        }
        next = following(next, threads);
    }
    return true;
}

template <class T> static T exchange(T value, int from) {
    const size_t threads = fibers.size(), thread = current;
    uint64_t *all = &slots[fibers[thread].turn * threads];
    fibers[thread].turn ^= 1;
    memcpy(&all[thread], &value, sizeof(T));
    wait(State::at_warp);
    memcpy(&value, &all[thread / 32 * 32 + from], sizeof(T));
    return value;
}

extern "C" int emulate(void (*which)(), const int64_t *given, const int *grid, const int *threads, uint64_t seed) {
    const size_t count = size_t(threads[0]) * threads[1] * threads[2];
    fibers.resize(count);
    slots.resize(2 * count);
    if (stacks.size() < count * STACK) stacks.resize(count * STACK);
    kernel = which;
    arguments = given;
    blockDim = {unsigned(threads[0]), unsigned(threads[1]), unsigned(threads[2])};
    gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
    std::mt19937_64 random(seed);
    start = random() % count;
    greedy = random() % 2;
    do stride = 1 + random() % count;
    while (std::gcd(stride, count) != 1);
    std::vector<size_t> order(size_t(grid[0]) * grid[1] * grid[2]);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (size_t i : order) {
        blockIdx = {unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]), unsigned(i / grid[0] / grid[1])};
        memset(dynamic, 0xff, sizeof dynamic);
        if (!block(count)) return 1;
    }
    return 0;
}

}  // namespace emulator

static inline void __threadfence() {}
static inline void __syncthreads() { emulator::wait(emulator::State::at_barrier); }

template <class T> static T __shfl_sync(unsigned, T x, int lane) { return emulator::exchange(x, lane % 32); }
template <class T> static T __shfl_xor_sync(unsigned, T x, int mask) {
    return emulator::exchange(x, (threadIdx.x % 32) ^ mask);
}
template <class T> static T __shfl_up_sync(unsigned, T x, int delta) {
    const int lane = threadIdx.x % 32;
    return emulator::exchange(x, lane < delta ? lane : lane - delta);
}

static inline unsigned int __ballot_sync(unsigned, bool vote) {
    unsigned int votes = 0;  // every lane reads all slots of its turn
    const size_t thread = emulator::current, warp = thread / 32 * 32;
    uint64_t *all = &emulator::slots[emulator::fibers[thread].turn * emulator::fibers.size()];
    emulator::exchange((uint64_t)vote, 0);
    for (int lane = 0; lane < 32; ++lane) votes |= (unsigned)(all[warp + lane] & 1) << lane;
    return votes;
}

static inline int __ffs(unsigned int x) { return __builtin_ffs((int)x); }

static inline int atomicAdd(int *place, int value) {
    const int before = *place;
    *place = before + value;
    return before;
}

template <class To, class From> static To same_bits(From x) {
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}

static inline float __uint_as_float(unsigned int x) { return same_bits<float>(x); }
static inline unsigned int __float_as_uint(float x) { return same_bits<unsigned int>(x); }
static inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (uint64_t)a * b >> 32; }

// IEEE 754 binary16, to the nearest, ties to even.

static inline float half_to_float(unsigned short bits) {
    const unsigned int sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    const float magnitude = exponent ? std::ldexp(float(1024 + mantissa), int(exponent) - 25) : std::ldexp(float(mantissa), -24);
    return __uint_as_float(sign | __float_as_uint(magnitude));
}

static inline unsigned short float_to_half(float x) {
    const unsigned int sign = __float_as_uint(x) >> 16 & 0x8000u;
    const float magnitude = std::fabs(x);
    if (x != x) return 0x7fff;
    if (magnitude == 0) return sign;
    if (magnitude >= 65520.0f) return sign | 0x7c00;  // half way from the largest to what would come next
    int exponent;
    std::frexp(magnitude, &exponent);  // magnitude = fraction 2^exponent, the fraction from 1/2 to 1
    const int unit = std::max(exponent - 11, -24);
    const unsigned int units = (unsigned int)std::nearbyint(std::ldexp(magnitude, -unit));
    return sign | (unit == -24 ? units : ((unsigned)(unit + 24) << 10) + units);
}
