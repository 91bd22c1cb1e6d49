// VMI-SA between its projections: one weighted sum of all tokens, added to each.
//
// Legend: B images, N tokens, C channels, w one weight a token, a₀ and a₁ two factors.
//
//     x = ReLU6(f₁) · f₂,  out = ReLU6(a₀ Σ_j w_j x_j + a₁ x)
//
// x is computed twice, for the sum and for the result, and never stored. Tokens are cut into chunks, so that threads
// share an image. Products and sums are float32, whatever the tensors hold.

#include <algorithm>

#include "vectors.h"

namespace {

constexpr long kChunk = 64;

struct Shape {
    long images, tokens, channels, threads;

    long chunks() const { return (tokens + kChunk - 1) / kChunk; }
};

inline Vec clamped(Vec x) { return activated(x, 2); }

// x of one block of channels; f₂ follows f₁.
template <typename T>
inline Vec gated(const Shape& shape, const T* f) {
    return clamped(load_block(f)) * load_block(f + shape.channels);
}

template <typename T>
void mix(const Shape& shape, const T* f, const float* weights, const float* factors, T* out, float* memory) {
    const long chunks = shape.chunks(), channels = shape.channels;
    float* const totals = memory + shape.images * chunks * channels;
#pragma omp parallel num_threads(shape.threads)
    {
#pragma omp for schedule(static)
        for (long piece = 0; piece < shape.images * chunks; ++piece) {
            const long image = piece / chunks, first = piece % chunks * kChunk;
            const long last = std::min(first + kChunk, shape.tokens);
            float* const sums = memory + piece * channels;
            std::fill_n(sums, channels, 0.0f);
            for (long n = first; n < last; ++n) {
                const T* const token = f + (image * shape.tokens + n) * 2 * channels;
                for (long c = 0; c < channels; c += kBlock)
                    store_block(sums + c, load_block(sums + c) + weights[n] * gated(shape, token + c));
            }
        }
#pragma omp for schedule(static)
        for (long image = 0; image < shape.images; ++image) {
            float* const total = totals + image * channels;
            std::fill_n(total, channels, 0.0f);
            for (long chunk = 0; chunk < chunks; ++chunk) {
                const float* const sums = memory + (image * chunks + chunk) * channels;
                for (long c = 0; c < channels; ++c) total[c] += factors[0] * sums[c];
            }
        }
#pragma omp for schedule(static)
        for (long token = 0; token < shape.images * shape.tokens; ++token) {
            const T* const from = f + token * 2 * channels;
            const float* const total = totals + token / shape.tokens * channels;
            for (long c = 0; c < channels; c += kBlock)
                store_block(out + token * channels + c,
                            clamped(load_block(total + c) + factors[1] * gated(shape, from + c)));
        }
    }
}

}  // namespace

// The number of floats of scratch memory.
extern "C" long sema_token_sum_floats(const Shape* shape) {
    return shape->images * (shape->chunks() + 1) * shape->channels;
}

extern "C" void sema_token_sum_float32(const Shape* shape, const float* f, const float* weights, const float* factors,
                                       float* out, float* scratch) {
    mix(*shape, f, weights, factors, out, scratch);
}

extern "C" void sema_token_sum_bfloat16(const Shape* shape, const BFloat16* f, const float* weights,
                                        const float* factors, BFloat16* out, float* scratch) {
    mix(*shape, f, weights, factors, out, scratch);
}
