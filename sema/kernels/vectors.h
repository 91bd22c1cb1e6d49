// Blocks of float32 that fill a vector register, and their exponential.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr long kBlock = 16;
#else
constexpr long kBlock = 8;
#endif
typedef float Vec __attribute__((vector_size(kBlock * sizeof(float))));
typedef std::int32_t IntVec __attribute__((vector_size(kBlock * sizeof(std::int32_t))));

inline Vec all(float x) { return Vec{} + x; }
inline Vec load_block(const float* from) {
    Vec block;
    std::memcpy(&block, from, sizeof block);
    return block;
}
inline void store_block(float* to, const Vec& block) { std::memcpy(to, &block, sizeof block); }

// exp(x) for x <= 80, to 2 units in the last place: 2^n times a polynomial of what is left of x over ln 2. Below -87 it
// stays at 1e-38.
inline Vec exponential(Vec x) {
    x = x < -87.0f ? all(-87.0f) : x;
    const Vec shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to a whole number, in the low bits
    const Vec n = shifted - 12582912.0f;
    const Vec r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000 + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

}  // namespace
