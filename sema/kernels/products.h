// Parts of attentions: strides of maps, products of small matrices and the softmax of a row, in float32 in one thread.

#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

inline long round_up(long number, long to) { return (number + to - 1) / to * to; }

// From one image of a map, or from one token, to the next.
struct Strides {
    long image, token;
};

// Tokens of a chunk: threads share the chunks of a head. Sums over them are added in order, so threads change nothing.
constexpr long kChunk = 128;
inline long count_chunks(long tokens) { return (tokens + kChunk - 1) / kChunk; }

// A chunk of tokens of one head of one image.
struct Chunk {
    long image, head, first;
    Chunk(long piece, long heads, long tokens)
        : image(piece / count_chunks(tokens) / heads),
          head(piece / count_chunks(tokens) % heads),
          first(piece % count_chunks(tokens) * kChunk) {}
    long end(long tokens) const { return std::min(first + kChunk, tokens); }
    // Where the `depth` numbers of a token and this head begin in a map.
    long in_map(const Strides& strides, long token, long depth) const {
        return image * strides.image + token * strides.token + head * depth;
    }
};

// Add the sums of all chunks of a head to those of the first one.
inline void add_chunks(float* sums, long chunks, long numbers) {
    for (long chunk = 1; chunk < chunks; ++chunk)
        for (long i = 0; i < numbers; ++i) sums[i] += sums[chunk * numbers + i];
}

// The first numbers of a block, at most kBlock.
template <typename T>
inline Vec load_some(const T* from, long numbers) {
    if (numbers == kBlock) return load_block(from);
    T some[kBlock] = {};
    std::copy(from, from + numbers, some);
    return load_block(some);
}
template <typename T>
inline void store_some(T* to, const Vec& block, long numbers) {
    if (numbers == kBlock) return store_block(to, block);
    T some[kBlock];
    store_block(some, block);
    std::copy(some, some + numbers, to);
}

// Two bfloat16 numbers that the CPU multiplies with two others at once. In a product of matrices they are neighbours in
// a row of the left one, and in a column of the right one. Products and sums are float32.
struct Pair {
    BFloat16 first, second;
};

inline void add_product(Vec& sum, float a, const Vec& b) { sum += a * b; }
#ifdef __AVX512BF16__
inline void add_product(Vec& sum, const Pair& a, const Vec& b) {
    std::int32_t bits;
    std::memcpy(&bits, &a, sizeof bits);
    sum = reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                 reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits)),
                                                 reinterpret_cast<__m512bh>(b)));
}
// Round blocks of numbers to bfloat16, in place; denormal ones become 0.
inline void pack(float* numbers, long blocks, const Pair*) {
    for (long j = 0; j < blocks; ++j) {
        const auto packed = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(load_block(numbers + j * kBlock)));
        std::memcpy(numbers + j * kBlock / 2, &packed, sizeof packed);
    }
}
#endif
inline void pack(float*, long, const float*) {}
// Round two rows of numbers to bfloat16 and join them to a row of pairs, for all rows and in place.
inline void pack_rows(float* numbers, long rows, long row, const Pair*) {
    BFloat16 first[kBlock], second[kBlock];
    for (long i = 0; i + 1 < rows; i += 2)
        for (long j = 0; j < row; j += kBlock) {
            store_block(first, load_block(numbers + i * row + j));
            store_block(second, load_block(numbers + (i + 1) * row + j));
            Pair pairs[kBlock];
            for (long k = 0; k < kBlock; ++k) pairs[k] = {first[k], second[k]};
            std::memcpy(numbers + i / 2 * row + j, pairs, sizeof pairs);
        }
}
inline void pack_rows(float*, long, long, const float*) {}

template <typename Number>
constexpr long numbers_in = 1;
template <>
constexpr long numbers_in<Pair> = 2;

// Copy channels of a token for products with its channels; the last block of a row of floats ends in zeros.
template <typename T>
void copy_row(const T* from, long depth, float* to) {
    for (long c = 0; c < depth; c += kBlock) store_block(to + c, load_some(from + c, std::min(kBlock, depth - c)));
}
inline void copy_row(const BFloat16* from, long depth, Pair* to) {
    for (long c = 0; c < depth; c += kBlock)
        if (c + kBlock <= depth) std::memcpy(to + c / 2, from + c, sizeof(HalfVec));
        else std::memcpy(to + c / 2, from + c, (depth - c) * sizeof(BFloat16));
}

// Copy channels of a token for products over tokens: into a row, or into half of a row of pairs.
template <typename T>
void copy_token(const T* from, long depth, long, float* to) {
    copy_row(from, depth, to);
}
inline void copy_token(const BFloat16* from, long depth, long token, Pair* to) {
    for (long c = 0; c < depth; c += kBlock) {
        const BitVec bits = reinterpret_cast<BitVec>(load_some(from + c, std::min(kBlock, depth - c)));
        BitVec pairs;
        std::memcpy(&pairs, to + c, sizeof pairs);
        pairs = token % 2 ? pairs | bits : bits >> 16;  // the last token may have no second one
        std::memcpy(to + c, &pairs, sizeof pairs);
    }
}

// A matrix in memory: element (i, k) is at i * row + k * column. Numbers are float, or Pairs.
template <typename Number>
struct Matrix {
    const Number* at;
    long row, column;

    Matrix below(long rows) const { return {at + rows * row, row, column}; }
};

// Most rows and blocks whose sums fit in registers, next to the numbers that are multiplied: 32 registers, or 16.
constexpr int kRows = 6, kMostBlocks = kBlock == 16 ? 4 : 2;

// out[i, j] = Σ_k a[i, k] · b[k, j] for `Rows` rows and `Blocks` blocks of columns, or out[i, j] += if `add`.
template <int Rows, int Blocks, typename Number>
inline void product(const Matrix<Number>& a, const Number* b, long b_row, float* out, long out_row, long depth,
                    bool add) {
    Vec sums[Rows][Blocks];
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Blocks; ++j) sums[i][j] = add ? load_block(out + i * out_row + j * kBlock) : Vec{};
    for (long k = 0; k < depth; ++k) {
        Vec columns[Blocks];
        for (int j = 0; j < Blocks; ++j) std::memcpy(&columns[j], b + k * b_row + j * kBlock, sizeof(Vec));
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Blocks; ++j) add_product(sums[i][j], a.at[i * a.row + k * a.column], columns[j]);
    }
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Blocks; ++j) store_block(out + i * out_row + j * kBlock, sums[i][j]);
}

template <int Blocks, typename Number>
inline void rows_of_product(const Matrix<Number>& a, const Number* b, long b_row, float* out, long out_row, long rows,
                            long depth, bool add) {
    long i = 0;
    for (; i + kRows <= rows; i += kRows)
        product<kRows, Blocks>(a.below(i), b, b_row, out + i * out_row, out_row, depth, add);
    for (; i < rows; ++i) product<1, Blocks>(a.below(i), b, b_row, out + i * out_row, out_row, depth, add);
}

// (rows × depth) times (depth × blocks · kBlock), perhaps added to what is there
template <typename Number>
inline void matmul(const Matrix<Number>& a, const Number* b, long b_row, float* out, long out_row, long rows,
                   long depth, long blocks, bool add = false) {
    long j = 0;
    if constexpr (kMostBlocks == 4)
        for (; j + 4 <= blocks; j += 4)
            rows_of_product<4>(a, b + j * kBlock, b_row, out + j * kBlock, out_row, rows, depth, add);
    for (; j + 2 <= blocks; j += 2)
        rows_of_product<2>(a, b + j * kBlock, b_row, out + j * kBlock, out_row, rows, depth, add);
    for (; j < blocks; ++j)
        rows_of_product<1>(a, b + j * kBlock, b_row, out + j * kBlock, out_row, rows, depth, add);
}

// Transpose a square of blocks, in registers where they are wide enough.
inline void transpose(Vec* rows) {
#ifdef __AVX512F__
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
    for (int half = 8; half; half /= 2) {  // exchange quarters of squares of 16, 8, 4 and 2
        const __m512i halves = _mm512_set1_epi32(half);
        const __mmask16 is_right = _mm512_test_epi32_mask(lane, halves);
        const __m512i above = _mm512_mask_add_epi32(lane, is_right, lane, _mm512_set1_epi32(16 - half));
        const __m512i below = _mm512_add_epi32(above, halves);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            if (i & half) continue;
            const __m512 first = reinterpret_cast<__m512>(rows[i]), second = reinterpret_cast<__m512>(rows[i + half]);
            rows[i] = reinterpret_cast<Vec>(_mm512_permutex2var_ps(first, above, second));
            rows[i + half] = reinterpret_cast<Vec>(_mm512_permutex2var_ps(first, below, second));
        }
    }
#else
    for (int i = 0; i < kBlock; ++i)
        for (int j = 0; j < i; ++j) {
            const float number = rows[i][j];
            rows[i][j] = rows[j][i];
            rows[j][i] = number;
        }
#endif
}

// out[j, i] = from[i, j], in whole blocks both ways.
template <typename Number>
inline void transpose(const Number* from, long from_row, long rows, long columns, Number* out, long out_row) {
    Vec square[kBlock];
    for (long i = 0; i < rows; i += kBlock)
        for (long j = 0; j < columns; j += kBlock) {
            for (long k = 0; k < kBlock; ++k)
                if (i + k < rows) std::memcpy(&square[k], from + (i + k) * from_row + j, sizeof(Vec));
                else square[k] = Vec{};
            transpose(square);
            for (long k = 0; k < std::min(kBlock, columns - j); ++k)
                std::memcpy(out + (j + k) * out_row + i, &square[k], sizeof(Vec));
        }
}

// Reduce a block to one number by repeated halving.
template <typename Take>
inline float reduce(const Vec& block, Take take) {
    typedef float Four __attribute__((vector_size(16)));
    Four parts[kBlock / 4];
    std::memcpy(parts, &block, sizeof parts);
    for (int half = kBlock / 8; half; half /= 2)
        for (int j = 0; j < half; ++j) parts[j] = take(parts[j], parts[j + half]);
    const Four all = parts[0];
    return take(take(all[0], all[2]), take(all[1], all[3]));
}

// Turn a row of scores into weights that are not yet divided by their sum; return the sum.
inline float soften(float* scores, long tokens, long blocks) {
    IntVec lane;
    for (int i = 0; i < kBlock; ++i) lane[i] = i;
    const IntVec is_token = lane < IntVec{} + static_cast<std::int32_t>(tokens - (blocks - 1) * kBlock);
    Vec* row = reinterpret_cast<Vec*>(scores);
    // Blend; do not store one by one: a load waits until narrower stores to its block have reached the cache.
    row[blocks - 1] = is_token ? row[blocks - 1] : all(-__builtin_inff());
    Vec largest = row[0];
    for (long j = 1; j < blocks; ++j) largest = largest > row[j] ? largest : row[j];
    const float most = reduce(largest, [](auto a, auto b) { return a > b ? a : b; });
    Vec total = Vec{};
    for (long j = 0; j < blocks; ++j) {
        const Vec x = row[j] - most;
        row[j] = x < -87.0f ? Vec{} : exponential(x);  // not denormal, nor a factor that makes values denormal
        total += row[j];
    }
    return reduce(total, [](auto a, auto b) { return a + b; });
}

}  // namespace
