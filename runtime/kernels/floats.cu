// Numbers as they lie in memory, the arithmetic being float32; and what several kernels do alike.
//
// The files are one program, joined in the order of SOURCES, and need no headers. Multiplications and additions are
// rounded one by one (fmad=false) where no fmaf stands: then the numbers are those of the twins in NumPy, bit for bit.
// Arguments are addresses and ints; what changes from call to call lies in memory, so that a CUDA graph can be replayed.

#define DEVICE static __device__ __forceinline__

typedef unsigned char uint8;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;
typedef float float32;
struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

#define INFINITE __uint_as_float(0x7f800000u)

#ifndef EMULATED
DEVICE float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

DEVICE unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// The shared memory that a launch asks for.
#define DYNAMIC_SHARED(Type, name) extern __shared__ Type name[]
#endif

DEVICE float from(float32 x) { return x; }
DEVICE float from(float16 x) { return half_to_float(x.bits); }
DEVICE float from(bfloat16 x) { return __uint_as_float((uint32)x.bits << 16); }

DEVICE void to(float x, float32 &y) { y = x; }
DEVICE void to(float x, float16 &y) { y.bits = float_to_half(x); }
DEVICE void to(float x, bfloat16 &y) {  // to the nearest, ties to even; sm_75 has no instruction for it
    const uint32 bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// ---------------------------------------------------------------- a sampler's table

// The columns of a sampler's table: samplers.COLUMNS. After them come the weights of the history.
enum {
    TIMESTEP, SCALE, P, Q, A, S, SIGNAL, NOISE, DENOISED_X, DENOISED_V, DRAWS, GUIDANCE, RESCALE, UNSCALED, COLUMNS
};

// ---------------------------------------------------------------- four elements at once

template <class T> struct alignas(4 * sizeof(T)) Four { T x[4]; };

// Whether all of an array can be taken in fours: nullptr can.
template <class T> DEVICE bool in_fours(const T *array, int64 count) {
    return (uint64)array % sizeof(Four<T>) == 0 && count % 4 == 0;
}

template <class T> DEVICE void load(const T *from_, int64 first, int64 count, bool fours, float x[4]) {
    if (fours) {
        const Four<T> four = *(const Four<T> *)(from_ + first);
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] = from(four.x[j]);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = first + j < count ? from(from_[first + j]) : 0.0f;
}

template <class T> DEVICE void store(T *to_, int64 first, int64 count, bool fours, const float x[4]) {
    if (fours) {
        Four<T> four;
#pragma unroll
        for (int j = 0; j < 4; ++j) to(x[j], four.x[j]);
        *(Four<T> *)(to_ + first) = four;
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (first + j < count) to(x[j], to_[first + j]);
}

// ---------------------------------------------------------------- counters, and sums of a block

// Set counter[0] once all blocks have read it: the last to come does. counter[1] counts them, and is 0 again after.
DEVICE void advance(int *counter, int next) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();  // what this block has read, it read before it is counted
    if (atomicAdd(&counter[1], 1) == (int)gridDim.x - 1) {
        counter[1] = 0;
        counter[0] = next;
    }
}

struct Sum {
    template <class T> DEVICE T of(T a, T b) { return a + b; }
};

struct Largest {
    template <class T> DEVICE T of(T a, T b) { return a < b ? b : a; }
};

// What `Op` makes of the values of all threads, for all of them. The block has whole warps; `of` 0 and x is x.
template <class Op, class T> DEVICE T together(T x) {
    __shared__ T parts[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int step = 16; step; step /= 2) x = Op::of(x, __shfl_xor_sync(0xffffffff, x, step));
    __syncthreads();  // of a call before, all have read
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = lane < (int)blockDim.x / 32 ? parts[lane] : T(0);
    for (int step = 16; step; step /= 2) x = Op::of(x, __shfl_xor_sync(0xffffffff, x, step));
    return x;
}
