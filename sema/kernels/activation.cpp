// Activation in place on numbers that lie one after another.

#include <algorithm>

#include "vectors.h"

namespace {

// A piece of work: this many numbers.
constexpr long kPiece = 4096;

struct Shape {
    long numbers, activation, threads;
};

template <long Activation, typename T>
void activate_all(const Shape& shape, T* x) {
#pragma omp parallel for num_threads(shape.threads) schedule(static)
    for (long start = 0; start < shape.numbers; start += kPiece) {
        const long end = std::min(start + kPiece, shape.numbers);
        long at = start;
        for (; at + kBlock <= end; at += kBlock) store_block(x + at, activated(load_block(x + at), Activation));
        if (at == end) continue;
        T rest[kBlock] = {};  // the last numbers, fewer than a block
        std::copy(x + at, x + end, rest);
        store_block(rest, activated(load_block(rest), Activation));
        std::copy(rest, rest + (end - at), x + at);
    }
}

template <typename T>
void activate(const Shape& shape, T* x) {
    switch (shape.activation) {
        case 1: return activate_all<1>(shape, x);
        case 2: return activate_all<2>(shape, x);
        case 3: return activate_all<3>(shape, x);
        case 4: return activate_all<4>(shape, x);
    }
}

}  // namespace

extern "C" void sema_activate_float32(const Shape* shape, float* x) { activate(*shape, x); }

extern "C" void sema_activate_bfloat16(const Shape* shape, BFloat16* x) { activate(*shape, x); }
