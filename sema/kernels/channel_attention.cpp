// Attentions that work through a d×d matrix of sums over all tokens: XCiT's (XCA) and SimA's.
//
// Legend: B images, N tokens, C channels, h heads, d = C / h, τ one temperature a head, blocks of 8 or 16 numbers.
//
//     XCA:   out = v Mᵀ,  M = softmax(τ q̂ᵀ k̂) by rows,  x̂: each channel over its ℓ2 norm over the tokens
//     SimA:  out = q̂ M,   M = k̂ᵀ v,                     x̂: each channel over its ℓ1 norm over the tokens
//
// A head of one image is one piece of work, a few tokens at a time. Norms divide the d×d matrix, never the tokens.
// Products and sums are float32, whatever the tensors hold.

#include <omp.h>

#include <cmath>

#include "products.h"

namespace {

// Tokens in L1 at once.
constexpr long kTokens = 64;
constexpr float kSmallestNorm = 1e-12f;

struct Shape {
    long images, tokens, heads, depth, threads;  // depth: d

    long wide() const { return (depth + kBlock - 1) / kBlock * kBlock; }
};

// Memory of one thread: arrays of whole cache lines.
struct Scratch {
    float *queries, *keys, *values, *sums, *part, *matrix, *query_norms, *key_norms;

    Scratch(const Shape& shape, float* memory) {
        for (float** array : {&queries, &keys, &values}) *array = take(memory, kTokens * shape.wide());
        for (float** array : {&sums, &part, &matrix}) *array = take(memory, shape.depth * shape.wide());
        for (float** array : {&query_norms, &key_norms}) *array = take(memory, shape.wide());
    }
    static long floats(const Shape& shape) {
        return lines(kTokens * shape.wide()) * 3 + lines(shape.depth * shape.wide()) * 3 + lines(shape.wide()) * 2;
    }

  private:
    static long lines(long numbers) { return (numbers + 15) / 16 * 16; }
    static float* take(float*& memory, long numbers) {
        float* const array = memory;
        memory += lines(numbers);
        return array;
    }
};

// Rows of d numbers, `stride` apart, become whole blocks that end in zeros.
template <typename T>
void load_rows(const Shape& shape, const T* from, long stride, long rows, float* to) {
    for (long n = 0; n < rows; ++n)
        for (long c = 0; c < shape.depth; c += kBlock)
            store_block(to + n * shape.wide() + c, load_some(from + n * stride + c, std::min(kBlock, shape.depth - c)));
}

// Add |x| or x² of each channel.
void add_sizes(const Shape& shape, const float* rows, long count, bool squared, float* sums) {
    for (long c = 0; c < shape.wide(); c += kBlock) {
        Vec sum = load_block(sums + c);
        for (long n = 0; n < count; ++n) {
            const Vec x = load_block(rows + n * shape.wide() + c);
            sum += squared ? x * x : (x < 0.0f ? -x : x);
        }
        store_block(sums + c, sum);
    }
}

// Sum the products of the channels and their sizes over all tokens.
template <typename T>
void sum_over_tokens(const Shape& shape, const T* q, bool is_xca, Scratch& scratch) {
    const long depth = shape.depth, wide = shape.wide(), channels = shape.heads * depth;
    std::fill_n(scratch.sums, depth * wide, 0.0f);
    std::fill_n(scratch.query_norms, wide, 0.0f);
    std::fill_n(scratch.key_norms, wide, 0.0f);
    for (long first = 0; first < shape.tokens; first += kTokens) {
        const long rows = std::min(kTokens, shape.tokens - first);
        const T* const here = q + first * 3 * channels;
        load_rows(shape, here, 3 * channels, rows, scratch.queries);
        load_rows(shape, here + channels, 3 * channels, rows, scratch.keys);
        if (!is_xca) load_rows(shape, here + 2 * channels, 3 * channels, rows, scratch.values);
        add_sizes(shape, scratch.queries, rows, is_xca, scratch.query_norms);
        add_sizes(shape, scratch.keys, rows, is_xca, scratch.key_norms);
        const float* const left = is_xca ? scratch.queries : scratch.keys;
        const float* const right = is_xca ? scratch.keys : scratch.values;
        matmul({left, 1, wide}, right, wide, scratch.part, wide, depth, rows, wide / kBlock);
        for (long i = 0; i < depth * wide; ++i) scratch.sums[i] += scratch.part[i];
    }
    for (float* norms : {scratch.query_norms, scratch.key_norms})
        for (long i = 0; i < depth; ++i)
            norms[i] = std::max(is_xca ? std::sqrt(norms[i]) : norms[i], kSmallestNorm);
}

// The matrix that each token is multiplied by, from the right.
void make_matrix(const Shape& shape, const float* temperature, Scratch& scratch) {
    const long depth = shape.depth, wide = shape.wide();
    std::fill_n(scratch.matrix, depth * wide, 0.0f);
    for (long i = 0; i < depth; ++i) {
        float* const row = scratch.sums + i * wide;
        if (!temperature) {
            const float factor = 1.0f / scratch.query_norms[i] / scratch.key_norms[i];
            for (long j = 0; j < depth; ++j) scratch.matrix[i * wide + j] = row[j] * factor;
            continue;
        }
        const float factor = *temperature / scratch.query_norms[i];
        for (long j = 0; j < depth; ++j) row[j] *= factor / scratch.key_norms[j];
        const float total = soften(row, depth, wide / kBlock);
        for (long j = 0; j < depth; ++j) scratch.matrix[j * wide + i] = row[j] / total;
    }
}

template <typename T>
void attend_with_head(const Shape& shape, const T* q, const float* temperature, T* out, Scratch& scratch) {
    const long wide = shape.wide(), channels = shape.heads * shape.depth;
    sum_over_tokens(shape, q, temperature != nullptr, scratch);
    make_matrix(shape, temperature, scratch);
    const T* const mixed = temperature ? q + 2 * channels : q;
    float *const rows_in = scratch.queries, *const rows_out = scratch.keys;
    for (long first = 0; first < shape.tokens; first += kTokens) {
        const long rows = std::min(kTokens, shape.tokens - first);
        load_rows(shape, mixed + first * 3 * channels, 3 * channels, rows, rows_in);
        matmul({rows_in, wide, 1}, scratch.matrix, wide, rows_out, wide, rows, shape.depth, wide / kBlock);
        for (long n = 0; n < rows; ++n)
            for (long c = 0; c < shape.depth; c += kBlock)
                store_some(out + (first + n) * channels + c, load_block(rows_out + n * wide + c),
                           std::min(kBlock, shape.depth - c));
    }
}

template <typename T>
void attend(const Shape& shape, const T* qkv, const float* temperatures, T* out, float* memory) {
    const long channels = shape.heads * shape.depth;
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(shape, memory + omp_get_thread_num() * Scratch::floats(shape));
#pragma omp for schedule(static)
        for (long piece = 0; piece < shape.images * shape.heads; ++piece) {
            const long head = piece % shape.heads, at = piece / shape.heads * shape.tokens * channels;
            attend_with_head(shape, qkv + 3 * at + head * shape.depth, temperatures ? temperatures + head : nullptr,
                             out + at + head * shape.depth, scratch);
        }
    }
}

}  // namespace

// The number of floats of scratch memory for all threads.
extern "C" long sema_channel_scratch_floats(const Shape* shape) {
    return Scratch::floats(*shape) * shape->threads;
}

// `temperatures`: one a head for XCA, null for SimA.
extern "C" void sema_channels_float32(const Shape* shape, const float* qkv, const float* temperatures, float* out,
                                      float* scratch) {
    attend(*shape, qkv, temperatures, out, scratch);
}

extern "C" void sema_channels_bfloat16(const Shape* shape, const BFloat16* qkv, const float* temperatures,
                                       BFloat16* out, float* scratch) {
    attend(*shape, qkv, temperatures, out, scratch);
}
