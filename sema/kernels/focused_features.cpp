// Features of focused linear attention, written over queries and keys in one pass.
//
// Legend: B images, N tokens, C channels, P a position encoding, r one factor a channel, p a power.
//
//     φ(x) = ‖x'‖ · x'^p / ‖x'^p‖,   x' = (ReLU(x) + ε) · r     (norms over all C channels; x is q, or k + P)
//
// Everything is computed in float32, whatever the map holds.

#include <omp.h>

#include <cmath>

#include "products.h"

namespace {

constexpr float kEpsilon = 1e-6f;

struct Shape {
    long images, tokens, channels, power, threads;
    Strides qk;
};

// φ of one token; `positions` may be null. `powers` holds C numbers.
template <typename T>
void focus_token(const Shape& shape, T* x, const float* positions, const float* rates, float* powers) {
    Vec squares = Vec{}, squared_powers = Vec{};
    for (long c = 0; c < shape.channels; c += kBlock) {
        Vec value = load_block(x + c);
        if (positions) value += load_block(positions + c);
        value = ((value < 0.0f ? Vec{} : value) + kEpsilon) * load_block(rates + c);
        Vec power = value;
        for (long i = 1; i < shape.power; ++i) power *= value;
        store_block(powers + c, power);
        squares += value * value;
        squared_powers += power * power;
    }
    const auto add = [](auto a, auto b) { return a + b; };
    const float factor = std::sqrt(reduce(squares, add)) / std::sqrt(reduce(squared_powers, add));
    for (long c = 0; c < shape.channels; c += kBlock) store_block(x + c, load_block(powers + c) * factor);
}

template <typename T>
void focus(const Shape& shape, T* qk, const float* positions, const float* rates, float* memory) {
#pragma omp parallel num_threads(shape.threads)
    {
        float* const powers = memory + omp_get_thread_num() * shape.channels;
#pragma omp for schedule(static)
        for (long i = 0; i < shape.images * shape.tokens; ++i) {
            const long token = i % shape.tokens;
            T* const queries = qk + i / shape.tokens * shape.qk.image + token * shape.qk.token;
            focus_token(shape, queries, nullptr, rates, powers);
            focus_token(shape, queries + shape.channels, positions + token * shape.channels, rates, powers);
        }
    }
}

}  // namespace

// `scratch`: C numbers for each thread.
extern "C" void sema_focus_float32(const Shape* shape, float* qk, const float* positions, const float* rates,
                                   float* scratch) {
    focus(*shape, qk, positions, rates, scratch);
}

extern "C" void sema_focus_bfloat16(const Shape* shape, BFloat16* qk, const float* positions, const float* rates,
                                    float* scratch) {
    focus(*shape, qk, positions, rates, scratch);
}
