// The linear recurrence of a selective scan, token by token, for whole registers of channels.
//
// Legend: G directions, B sequences, P×Q tokens of a grid, L = P·Q, D channels, N states per channel.
//
//     h_t = exp(delta_t a) h_{t-1} + delta_t b_t u_t,   y_t = c_t · h_t
//
// With a bias (G, D), delta is computed here: softplus(delta + bias).
//
// Channels are independent: a block of them in one direction of one sequence is one piece of work, and its
// states stay in registers or in the L1 cache. The second direction runs backward.

#include "vectors.h"

namespace {

// Strides of a tensor, in numbers; the values of one token are adjacent.
struct Steps {
    long direction, sequence, row, column;
    long at(long g, long s, long p, long q) const { return g * direction + s * sequence + p * row + q * column; }
};

struct Shape {
    long directions, sequences, rows, columns, channels, states, threads;
    Steps u, delta, b, c, y;
};

constexpr long kMostStates = 64;

// Scan one block of channels. The first `count` exist; the rest is neither read nor written.
template <long States, typename T>
void scan_block(const Shape& shape, const float* u, const T* delta, const float* bias, const float* a, const float* b,
                const float* c, float* y, long g, long s, long first, long count) {
    const long states = States ? States : shape.states;
    Vec decay[States ? States : kMostStates], h[States ? States : kMostStates];
    for (long n = 0; n < states; ++n) {
        float rates[kBlock] = {};
        for (long i = 0; i < count; ++i) rates[i] = a[(g * shape.channels + first + i) * states + n];
        decay[n] = load_block(rates);
        h[n] = Vec{};
    }
    float biases[kBlock] = {};
    if (bias) std::memcpy(biases, bias + g * shape.channels + first, count * sizeof(float));
    const Vec shift = load_block(biases);
    T part_of_delta[kBlock] = {};
    float part_of_u[kBlock] = {};
    const auto walk = [&](long p, long q) {
        const float* u_t = u + shape.u.at(g, s, p, q) + first;
        const T* delta_t = delta + shape.delta.at(g, s, p, q) + first;
        const float* b_t = b + shape.b.at(g, s, p, q);
        const float* c_t = c + shape.c.at(g, s, p, q);
        float* y_t = y + shape.y.at(g, s, p, q) + first;
        if (count < kBlock) {
            std::memcpy(part_of_delta, delta_t, count * sizeof(T));
            std::memcpy(part_of_u, u_t, count * sizeof(float));
            delta_t = part_of_delta;
            u_t = part_of_u;
        }
        const Vec by = bias ? softplus(load_block(delta_t) + shift) : load_block(delta_t);
        const Vec input = load_block(u_t) * by;
        Vec out = Vec{};
        for (long n = 0; n < states; ++n) {
            h[n] = exponential(by * decay[n]) * h[n] + input * b_t[n];
            out = out + h[n] * c_t[n];
        }
        if (count == kBlock) {
            store_block(y_t, out);
        } else {
            std::memcpy(y_t, &out, count * sizeof(float));
        }
    };
    if (g == 0) {
        for (long p = 0; p < shape.rows; ++p)
            for (long q = 0; q < shape.columns; ++q) walk(p, q);
    } else {
        for (long p = shape.rows - 1; p >= 0; --p)
            for (long q = shape.columns - 1; q >= 0; --q) walk(p, q);
    }
}

template <typename T>
void scan_all(const Shape& shape, const float* u, const T* delta, const float* bias, const float* a, const float* b,
              const float* c, float* y) {
    const long blocks = (shape.channels + kBlock - 1) / kBlock;
    const long pieces = shape.directions * shape.sequences * blocks;
#pragma omp parallel for schedule(static) num_threads(shape.threads)
    for (long piece = 0; piece < pieces; ++piece) {
        const long first = piece % blocks * kBlock, s = piece / blocks % shape.sequences;
        const long g = piece / blocks / shape.sequences;
        const long count = shape.channels - first < kBlock ? shape.channels - first : kBlock;
        const auto scan = shape.states == 1    ? scan_block<1, T>
                          : shape.states == 16 ? scan_block<16, T>
                                               : scan_block<0, T>;
        scan(shape, u, delta, bias, a, b, c, y, g, s, first, count);
    }
}

}  // namespace

extern "C" void sema_selective_scan_float32(const Shape* shape, const float* u, const float* delta, const float* bias,
                                            const float* a, const float* b, const float* c, float* y) {
    scan_all(*shape, u, delta, bias, a, b, c, y);
}

extern "C" void sema_selective_scan_bfloat16(const Shape* shape, const float* u, const BFloat16* delta,
                                             const float* bias, const float* a, const float* b, const float* c,
                                             float* y) {
    scan_all(*shape, u, delta, bias, a, b, c, y);
}
