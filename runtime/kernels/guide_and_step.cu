// Guidance, the sampler's update and the model's next input, in one pass over the latents; and an inpainting's mask.

DEVICE float guide(float unconditional, float conditional, float scale) {
    return (conditional - unconditional) * scale + unconditional;
}

// How much wider, picture by picture, the conditional prediction is spread than the guided one. grid: pictures.
template <class T> DEVICE void rescale(
    const T *prediction, float *factor, const float *table, const int *step, int each, int width
) {
    const int number = step[0];
    if (number < 0) return;
    const float scale = table[(int64)number * width + GUIDANCE];
    const T *unconditional = prediction + (int64)blockIdx.x * each;
    const T *conditional = unconditional + (int64)gridDim.x * each;
    float sums[2] = {0, 0}, squares[2] = {0, 0};
    for (int i = threadIdx.x; i < each; i += blockDim.x) {
        const float u = from(unconditional[i]), c = from(conditional[i]);
        sums[0] += c;
        sums[1] += guide(u, c, scale);
    }
    const float means[2] = {together<Sum>(sums[0]) / each, together<Sum>(sums[1]) / each};
    for (int i = threadIdx.x; i < each; i += blockDim.x) {
        const float u = from(unconditional[i]), c = from(conditional[i]);
        const float from_mean = c - means[0], guided_from_mean = guide(u, c, scale) - means[1];
        squares[0] += from_mean * from_mean;
        squares[1] += guided_from_mean * guided_from_mean;
    }
    const float spread = sqrtf(together<Sum>(squares[0]) / (each - 1));
    const float guided_spread = sqrtf(together<Sum>(squares[1]) / (each - 1));
    if (threadIdx.x == 0) factor[blockIdx.x] = spread / guided_spread;
}

template <class P_, class M> DEVICE void guide_and_step(
    const P_ *prediction, float *latents, float *history, M *model_input, float *timestep, const float *table,
    int *step, const float *noise, float *denoised, const float *factor,
    int batch, int each, int copies, int depth
) {
    const int number = step[0], width = COLUMNS + depth;
    const float *row = table + (int64)number * width, *next = row + width;
    const int64 count = (int64)batch * each, thread = (int64)blockIdx.x * blockDim.x + threadIdx.x, first = 4 * thread;
    const bool fours = in_fours(prediction, count) && in_fours(latents, count) && in_fours(history, count) &&
                       in_fours(model_input, count) && in_fours(noise, count) && in_fours(denoised, count);
    if (first < count) {
        float x[4];
        load(latents, first, count, fours, x);
        if (number >= 0) {
            float v[4], h[4];
            load(prediction, first, count, fours, v);
            if (copies == 2) {
                load(prediction + count, first, count, fours, h);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    v[j] = guide(v[j], h[j], row[GUIDANCE]);
                    if (factor && first + j < count)
                        v[j] *= row[RESCALE] * factor[(first + j) / each] + row[UNSCALED];
                }
            }
            if (denoised) {
#pragma unroll
                for (int j = 0; j < 4; ++j) h[j] = row[DENOISED_X] * x[j] + row[DENOISED_V] * v[j];
                store(denoised, first, count, fours, h);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                h[j] = row[Q] * v[j];
                if (row[P] != 0) h[j] += row[P] * x[j];
                x[j] *= row[A];
                if (row[COLUMNS] != 0) x[j] += row[COLUMNS] * h[j];
            }
            if (depth > 1) store(history + number % depth * count, first, count, fours, h);
            for (int back = 1; back < depth; ++back) {
                const float weight = row[COLUMNS + back];
                if (weight == 0) continue;
                load(history + (number - back) % depth * count, first, count, fours, h);
#pragma unroll
                for (int j = 0; j < 4; ++j) x[j] += weight * h[j];
            }
            if (row[S] != 0) {
                load(noise, first, count, fours, h);
#pragma unroll
                for (int j = 0; j < 4; ++j) x[j] += row[S] * h[j];
            }
            store(latents, first, count, fours, x);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] *= next[SCALE];
        for (int copy = 0; copy < copies; ++copy) store(model_input + copy * count, first, count, fours, x);
    }
    for (int64 i = thread; i < (int64)copies * batch; i += (int64)gridDim.x * blockDim.x) timestep[i] = next[TIMESTEP];
    advance(step, number + 1);
}

// Put the known picture, at the row's level of noise, where the mask is 0; and the model's input anew.
template <class M> DEVICE void blend(
    float *latents, const float *mask, const float *known, const float *noise, M *model_input, const float *table,
    const int *step, int batch, int channels, int each, int copies, int width
) {
    const float *row = table + (int64)step[0] * width;
    const int64 count = (int64)batch * channels * each, i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float repainted = mask[i / each / channels * each + i % each];
    const float noisy = row[SIGNAL] * known[i] + row[NOISE] * noise[i];
    const float x = repainted * latents[i] + (1.0f - repainted) * noisy;
    latents[i] = x;
    for (int copy = 0; copy < copies; ++copy) to(row[SCALE] * x, model_input[copy * count + i]);
}

#define RESCALE_OF(T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512) rescale_##T(                                                     \
        const T *prediction, float *factor, const float *table, const int *step, int each, int width                   \
    ) {                                                                                                                \
        rescale(prediction, factor, table, step, each, width);                                                         \
    }

#define GUIDE_AND_STEP(P_, M)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) guide_and_step_##P_##_##M(                                       \
        const P_ *prediction, float *latents, float *history, M *model_input, float *timestep, const float *table,     \
        int *step, const float *noise, float *denoised, const float *factor,                                           \
        int batch, int each, int copies, int depth                                                                     \
    ) {                                                                                                                \
        guide_and_step(prediction, latents, history, model_input, timestep, table, step, noise, denoised, factor,      \
                       batch, each, copies, depth);                                                                    \
    }

#define BLEND(M)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) blend_##M(                                                       \
        float *latents, const float *mask, const float *known, const float *noise, M *model_input, const float *table, \
        const int *step, int batch, int channels, int each, int copies, int width                                      \
    ) {                                                                                                                \
        blend(latents, mask, known, noise, model_input, table, step, batch, channels, each, copies, width);            \
    }

#define FROM(P_)                                                                                                       \
    RESCALE_OF(P_)                                                                                                     \
    BLEND(P_)                                                                                                          \
    GUIDE_AND_STEP(P_, float32)                                                                                        \
    GUIDE_AND_STEP(P_, float16)                                                                                        \
    GUIDE_AND_STEP(P_, bfloat16)

FROM(float32)
FROM(float16)
FROM(bfloat16)
