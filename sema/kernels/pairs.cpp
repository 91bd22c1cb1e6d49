// Compare how fast this CPU multiplies pairs of bfloat16 and single float32.

#include <algorithm>
#include <chrono>

#include "products.h"

#ifdef __AVX512BF16__
namespace {

constexpr int kDepth = 64, kProducts = 64, kTries = 16;

// The shortest time of a few products in cache.
template <typename Number>
double seconds() {
    Number left[kRows * kDepth] = {}, right[kDepth * kMostBlocks * kBlock] = {};
    float out[kRows * kMostBlocks * kBlock] = {};
    double shortest = 1.0;
    for (int i = 0; i < kTries; ++i) {
        const auto started = std::chrono::steady_clock::now();
        for (int j = 0; j < kProducts; ++j) {
            product<kRows, kMostBlocks>(Matrix<Number>{left, kDepth, 1}, right, kMostBlocks * kBlock, out,
                                        kMostBlocks * kBlock, kDepth, false);
            asm volatile("" : : "r"(left), "r"(right), "r"(out) : "memory");  // compute each of them
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
        shortest = std::min(shortest, took.count());
    }
    return shortest;
}

}  // namespace
#endif

// The time of a product of pairs over that of two products of floats; 0 if the CPU has no products of pairs.
extern "C" double sema_time_of_pairs() {
#ifdef __AVX512BF16__
    return seconds<Pair>() / (2 * seconds<float>());
#else
    return 0;
#endif
}
