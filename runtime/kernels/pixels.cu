// Pixels between float (batch, channels, pixels) and bytes (..., channels).

// -1 to 1 as 0 to 255; NaN as 0.
DEVICE uint8 to_byte(float x) {
    return (uint8)rintf(fminf(fmaxf(x * 0.5f + 0.5f, 0.0f), 1.0f) * 255.0f);
}

template <class T> DEVICE void to_uint8(uint8 *out, const T *pixels, int batch, int channels, int each) {
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64)batch * each) return;
    const T *pixel = pixels + i / each * channels * each + i % each;
    for (int channel = 0; channel < channels; ++channel)
        out[i * channels + channel] = to_byte(from(pixel[(int64)channel * each]));
}

template <class T> DEVICE void from_uint8(T *out, const uint8 *pixels, int batch, int channels, int each) {
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64)batch * each) return;
    T *pixel = out + i / each * channels * each + i % each;
    for (int channel = 0; channel < channels; ++channel)
        to(pixels[i * channels + channel] / 255.0f * 2.0f - 1.0f, pixel[(int64)channel * each]);
}

#define PIXELS(T)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) to_uint8_##T(                                                    \
        uint8 *out, const T *pixels, int batch, int channels, int each                                                 \
    ) {                                                                                                                \
        to_uint8(out, pixels, batch, channels, each);                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) from_uint8_##T(                                                  \
        T *out, const uint8 *pixels, int batch, int channels, int each                                                 \
    ) {                                                                                                                \
        from_uint8(out, pixels, batch, channels, each);                                                                \
    }

PIXELS(float32)
PIXELS(float16)
PIXELS(bfloat16)
