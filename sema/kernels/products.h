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

inline float load(const float& x) { return x; }
inline float load(const BFloat16& x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
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

// A matrix in memory: element (i, k) is at i * row + k * column.
struct Matrix {
    const float* at;
    long row, column;

    Matrix below(long rows) const { return {at + rows * row, row, column}; }
};

// out[i, j] = Σ_k a[i, k] · b[k, j] for `Rows` rows and `Blocks` blocks of columns.
template <int Rows, int Blocks>
inline void product(const Matrix& a, const float* b, long b_row, float* out, long out_row, long depth) {
    Vec sums[Rows][Blocks];
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Blocks; ++j) sums[i][j] = Vec{};
    for (long k = 0; k < depth; ++k) {
        Vec columns[Blocks];
        for (int j = 0; j < Blocks; ++j) columns[j] = *reinterpret_cast<const Vec*>(b + k * b_row + j * kBlock);
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Blocks; ++j) sums[i][j] += a.at[i * a.row + k * a.column] * columns[j];
    }
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Blocks; ++j) *reinterpret_cast<Vec*>(out + i * out_row + j * kBlock) = sums[i][j];
}

template <int Blocks>
inline void rows_of_product(const Matrix& a, const float* b, long b_row, float* out, long out_row, long rows,
                            long depth) {
    long i = 0;
    for (; i + 4 <= rows; i += 4) product<4, Blocks>(a.below(i), b, b_row, out + i * out_row, out_row, depth);
    for (; i < rows; ++i) product<1, Blocks>(a.below(i), b, b_row, out + i * out_row, out_row, depth);
}

// (rows × depth) times (depth × blocks · kBlock)
inline void matmul(const Matrix& a, const float* b, long b_row, float* out, long out_row, long rows, long depth,
                   long blocks) {
    long j = 0;
    for (; j + 4 <= blocks; j += 4)
        rows_of_product<4>(a, b + j * kBlock, b_row, out + j * kBlock, out_row, rows, depth);
    for (; j + 2 <= blocks; j += 2)
        rows_of_product<2>(a, b + j * kBlock, b_row, out + j * kBlock, out_row, rows, depth);
    for (; j < blocks; ++j)
        rows_of_product<1>(a, b + j * kBlock, b_row, out + j * kBlock, out_row, rows, depth);
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
        row[j] = exponential(row[j] - most);
        total += row[j];
    }
    return reduce(total, [](auto a, auto b) { return a + b; });
}

}  // namespace
