// Normal noise as torch's CUDA generator draws it: noise.TorchCuda, thread by thread and bit by bit.

DEVICE void philox(uint32 word[4], uint32 left, uint32 right) {
    for (int round = 0; round < 10; ++round) {
        const uint32 a = word[0], c = word[2];
        word[0] = __umulhi(0xCD9E8D57u, c) ^ word[1] ^ left;
        word[1] = 0xCD9E8D57u * c;
        word[2] = __umulhi(0xD2511F53u, a) ^ word[3] ^ right;
        word[3] = 0xD2511F53u * a;
        left += 0x9E3779B9u;
        right += 0xBB67AE85u;
    }
}

// The logarithm of a normal float above 0: Cephes' logf, as noise.py has it.
DEVICE float cephes_log(float x) {
    const int exponent = (int)(__float_as_uint(x) - 0x3F3504F3u) >> 23;
    x = __uint_as_float(__float_as_uint(x) - ((uint32)exponent << 23)) - 1.0f;
    const float square = x * x, power = (float)exponent;
    float y = 7.0376836292e-2f;
    y = fmaf(y, x, -1.1514610310e-1f);
    y = fmaf(y, x, 1.1676998740e-1f);
    y = fmaf(y, x, -1.2420140846e-1f);
    y = fmaf(y, x, 1.4249322787e-1f);
    y = fmaf(y, x, -1.6668057665e-1f);
    y = fmaf(y, x, 2.0000714765e-1f);
    y = fmaf(y, x, -2.4999993993e-1f);
    y = fmaf(y, x, 3.3333331174e-1f);
    y = fmaf(y * x, square, power * -2.12194440e-4f);
    return fmaf(power, 0.693359375f, x + fmaf(square, -0.5f, y));
}

// Sine and cosine of 0 to 8192: Cephes' sinf, as noise.py has it.
DEVICE void cephes_sincos(float x, float &sine, float &cosine) {
    const int octant = ((int)(x * 1.27323954473516f) + 1) & ~1;
    const float turns = (float)octant;
    x = fmaf(turns, -0.78515625f, x);
    x = fmaf(turns, -2.4187564849853515625e-4f, x);
    x = fmaf(turns, -3.77489497744594108e-8f, x);
    const float square = x * x;
    const float s = fmaf(fmaf(-1.9515295891e-4f, square, 8.3321608736e-3f), square, -1.6666654611e-1f) * square;
    const float c =
        fmaf(fmaf(2.443315711809948e-5f, square, -1.388731625493765e-3f), square, 4.166664568298827e-2f) * square;
    const float a = fmaf(s, x, x), b = fmaf(c, square, square * -0.5f) + 1.0f;
    sine = octant & 2 ? b : a;
    cosine = octant & 2 ? a : b;
    if (octant & 4) sine = -sine;
    if ((octant + 2) & 4) cosine = -cosine;
}

// Two normals of two words: cuRAND's Box-Muller.
DEVICE void box_muller(uint32 x, uint32 y, float normal[2]) {
    const float step = 6.283185307179586f * 2.3283064365386963e-10f;
    const float radius = sqrtf(-2.0f * cephes_log(fmaf((float)x, 2.3283064365386963e-10f, 1.1641532182693481e-10f)));
    cephes_sincos(fmaf((float)y, step, step / 2), normal[0], normal[1]);
    normal[0] *= radius;
    normal[1] *= radius;
}

// grid: (torch's threads, the fours that each of them draws, pictures).
extern "C" __global__ void __launch_bounds__(256) normal(
    float *out, const uint64 *seeds, const uint32 *offsets, const float *table, const int *step,
    int size, int threads, int fours, int width
) {
    uint32 first = offsets[blockIdx.z];
    if (table) {
        const int number = step[0];
        if (number < 0 || table[(int64)number * width + S] == 0) return;
        first += (uint32)table[(int64)number * width + DRAWS] * fours;
    }
    const uint32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= threads) return;
    const uint64 seed = seeds[blockIdx.z];
    uint32 word[4] = {first + blockIdx.y, 0, thread, 0};
    philox(word, (uint32)seed, (uint32)(seed >> 32));
    float four[4];
    box_muller(word[0], word[1], four);
    box_muller(word[2], word[3], four + 2);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int64 place = (int64)(4 * blockIdx.y + j) * threads + thread;
        if (place < size) out[(int64)blockIdx.z * size + place] = four[j];
    }
}
