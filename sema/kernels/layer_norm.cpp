// Layer norm of each token: y = (x − mean) / √(variance + ε) · weight + bias, in float32, whatever the tokens hold.

#include <cmath>

#include "products.h"

namespace {

struct Shape {
    long tokens, channels, threads;
};

template <typename T>
void norm(const Shape& shape, float epsilon, const T* x, const float* weight, const float* bias, T* out) {
    const long channels = shape.channels;
    const auto add = [](auto a, auto b) { return a + b; };
#pragma omp parallel for num_threads(shape.threads) schedule(static)
    for (long token = 0; token < shape.tokens; ++token) {
        const T* const from = x + token * channels;
        Vec sum = Vec{}, squares = Vec{};
        for (long c = 0; c < channels; c += kBlock) sum += load_block(from + c);
        const float mean = reduce(sum, add) / channels;
        for (long c = 0; c < channels; c += kBlock) {
            const Vec centred = load_block(from + c) - mean;
            squares += centred * centred;
        }
        const float factor = 1.0f / std::sqrt(reduce(squares, add) / channels + epsilon);
        for (long c = 0; c < channels; c += kBlock)
            store_block(out + token * channels + c,
                        (load_block(from + c) - mean) * factor * load_block(weight + c) + load_block(bias + c));
    }
}

}  // namespace

extern "C" void sema_norm_float32(const Shape* shape, float epsilon, const float* x, const float* weight,
                                  const float* bias, float* out) {
    norm(*shape, epsilon, x, weight, bias, out);
}

extern "C" void sema_norm_bfloat16(const Shape* shape, float epsilon, const BFloat16* x, const float* weight,
                                   const float* bias, BFloat16* out) {
    norm(*shape, epsilon, x, weight, bias, out);
}
