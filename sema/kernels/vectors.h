// Blocks of float32 that fill a vector register, their storage as bfloat16, and functions on them.

#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

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

struct BFloat16 {
    std::uint16_t bits;
};
typedef std::uint16_t HalfVec __attribute__((vector_size(kBlock * sizeof(std::uint16_t))));
typedef std::uint32_t BitVec __attribute__((vector_size(kBlock * sizeof(std::uint32_t))));

inline Vec load_block(const BFloat16* from) {
    HalfVec halves;
    std::memcpy(&halves, from, sizeof halves);
#ifdef __AVX512F__  // GCC 12 would widen in two parts
    const BitVec bits = reinterpret_cast<BitVec>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(halves))) << 16;
#else
    const BitVec bits = __builtin_convertvector(halves, BitVec) << 16;
#endif
    Vec block;
    std::memcpy(&block, &bits, sizeof block);
    return block;
}
// Rounds to the nearest, ties to even; NaN stays NaN.
inline void store_block(BFloat16* to, const Vec& block) {
    BitVec bits;
    std::memcpy(&bits, &block, sizeof bits);
    bits = block == block ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : BitVec{} + 0x7fc0u;
    const HalfVec halves = __builtin_convertvector(bits, HalfVec);
    std::memcpy(to, &halves, sizeof halves);
}

// exp(x) for x <= 80, within 2 units in the last place; exp(0) is exactly 1. With x = n ln 2 + r it is 2^n p(r).
// p is within 1e-7. Below x = -87 the result stays at 1e-38.
inline Vec exponential(Vec x) {
#ifdef __AVX512F__
    // With the operands in this order, the maximum keeps NaN.
    x = reinterpret_cast<Vec>(_mm512_max_ps(reinterpret_cast<__m512>(all(-87.0f)), reinterpret_cast<__m512>(x)));
    const Vec n = reinterpret_cast<Vec>(
        _mm512_roundscale_ps(reinterpret_cast<__m512>(x * 1.44269504088896341f), _MM_FROUND_TO_NEAREST_INT));
#else
    x = x < -87.0f ? all(-87.0f) : x;
    const Vec shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to a whole number, in the low bits
    const Vec n = shifted - 12582912.0f;
#endif
    const Vec r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
    Vec p = r * 8.290229e-3f + 4.189839e-2f;
    p = p * r + 0.1666764f;
    p = p * r + 0.49999145f;
    p = p * r + 0.9999997f;
    p = p * r + 1.0f;
#ifdef __AVX512F__
    return reinterpret_cast<Vec>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000 + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
#endif
}

inline Vec sigmoid(Vec x) {
    const Vec y = 1.0f / (1.0f + exponential(x < -80.0f ? all(80.0f) : -x));
    return x < -80.0f ? Vec{} : y;
}

// erfc(x) for x >= 0: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, itself within 1.5e-7.
inline Vec complementary_error_function(Vec x) {
    const Vec t = 1.0f / (1.0f + 0.3275911f * x);
    Vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    return p * t * exponential(-x * x);
}

// Within 4e-7, without 1 + erf, which cancels below zero. From 12 on, the second term is 0 next to x, and would soon be
// denormal, which is slow on some CPUs.
inline Vec gelu(Vec x) {
    const Vec positive = x < 0.0f ? Vec{} : x, size = x < 0.0f ? -x : x;
    const Vec bounded = size > 12.0f ? all(12.0f) : size;
    return positive - 0.5f * bounded * complementary_error_function(bounded * 0.70710678118654752f);
}

// log(1 + exp(x)) within 4e-7 of its value; below x = -87 the result stays at 1e-38.
// With t = exp(-|x|) and s = t / (2 + t), log(1 + t) is 2 artanh(s), whose series ends here within 2e-8 of it.
inline Vec softplus(Vec x) {
    const Vec positive = x < 0.0f ? Vec{} : x;
    const Vec t = exponential(x < 0.0f ? x : -x);
    const Vec s = t / (2.0f + t), square = s * s;
    Vec p = square * (1.0f / 13.0f) + 1.0f / 11.0f;
    p = p * square + 1.0f / 9.0f;
    p = p * square + 1.0f / 7.0f;
    p = p * square + 1.0f / 5.0f;
    p = p * square + 1.0f / 3.0f;
    p = p * square + 1.0f;
    return positive + 2.0f * s * p;
}

// The activations of sema/kernels/activation.py, by number.
inline Vec activated(Vec x, long activation) {
    const Vec positive = x < 0.0f ? Vec{} : x;
    switch (activation) {
        case 1: return positive;
        case 2: return positive > 6.0f ? all(6.0f) : positive;
        case 3: return gelu(x);
        case 4: return x * sigmoid(x);
        default: return x;
    }
}

}  // namespace
