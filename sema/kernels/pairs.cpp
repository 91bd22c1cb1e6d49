// Compare how fast this CPU multiplies bfloat16 in pairs and float32 one by one.

#include <algorithm>
#include <chrono>
#include <limits>

#include "products.h"

#ifdef __AVX512BF16__
namespace {

constexpr int kDepth = 64, kProducts = 64, kRounds = 16;

// The time of some products in cache.
template <typename Number>
double seconds() {
    static Number left[kRows * kDepth], right[kDepth * kMostBlocks * kBlock];
    static float out[kRows * kMostBlocks * kBlock];
    const auto started = std::chrono::steady_clock::now();
    for (int i = 0; i < kProducts; ++i) {
        product<kRows, kMostBlocks>(Matrix<Number>{left, kDepth, 1}, right, kMostBlocks * kBlock, out,
                                    kMostBlocks * kBlock, kDepth / numbers_in<Number>, false);
        asm volatile("" : : "r"(left), "r"(right), "r"(out) : "memory");  // compute each of them
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

}  // namespace
#endif

// The shortest time in pairs over that in float32; 0 if the CPU cannot multiply pairs.
extern "C" double sema_share_of_time() {
#ifdef __AVX512BF16__
    double pairs = std::numeric_limits<double>::infinity(), floats = pairs;
    for (int i = 0; i <= kRounds; ++i) {
        const double in_pairs = seconds<Pair>(), one_by_one = seconds<float>();
        if (!i) continue;  // to warm up
        pairs = std::min(pairs, in_pairs);
        floats = std::min(floats, one_by_one);
    }
    return pairs / floats;
#else
    return 0;
#endif
}
