// Attentions that work through a d×d matrix of sums over all tokens: XCiT's (XCA), SimA's and InLine's.
//
// Legend: B images, N tokens, C channels, h heads, d = C / h, τ one temperature a head, blocks of 8 or 16 numbers.
// SimA may have more queries than keys, the others as many.
//
//     XCA:     out = v Mᵀ,  M = softmax(τ q̂ᵀ k̂) by rows,  x̂: each channel over its ℓ2 norm over the tokens
//     SimA:    out = q̂ M,   M = k̂ᵀ v,                     x̂: each channel over its ℓ1 norm over the tokens
//     InLine:  out = q M + v̄ + add,  M = (kᵀ v / N − k̄ᵀ v̄) / √d,  x̄: the mean of each channel over the tokens
//
// Tokens are cut into chunks; a chunk of one head of one image is one piece of work, first to make sums, then to apply
// the matrix of all of them. Norms divide the matrix, never the tokens. Products and sums are float32, whatever the
// tensors hold. With Pairs, the matrix is rounded to bfloat16.

#include <omp.h>

#include <cmath>

#include "products.h"

namespace {

// Tokens in the L1 or L2 cache at once.
constexpr long kTokens = 64;
constexpr float kSmallestNorm = 1e-12f;

enum Kind : long { kXca, kSima, kInLine };

struct Shape {
    long images, queries, keys, heads, depth, kind, threads;  // depth: d
    Strides q, k, v, add;

    long wide() const { return round_up(depth, kBlock); }
    long tokens() const { return std::max(queries, keys); }
    long chunks() const { return count_chunks(tokens()); }
    long matrix() const { return round_up((depth + 1) * wide(), 16); }  // the last row is added, for InLine
    long sums() const { return matrix() + 2 * round_up(wide(), 16); }
};

template <typename T>
struct Maps {
    const T *q, *k, *v, *add;
};

// Sums over a chunk or over all tokens, views of one array: the products; then, for each channel, the norm of the keys
// and of the queries; for InLine the sum of the keys and of the values.
struct Sums {
    float *matrix, *keys, *others;
    Sums(const Shape& shape, float* memory)
        : matrix(memory), keys(memory + shape.matrix()), others(keys + round_up(shape.wide(), 16)) {}
};

// Memory of one thread. Number: float or Pair.
template <typename Number>
struct Scratch {
    Number *left, *right;
    float* product;

    Scratch(const Shape& shape, float* memory) {
        left = reinterpret_cast<Number*>(memory);
        right = left + kTokens * shape.wide();
        product = reinterpret_cast<float*>(right + kTokens * shape.wide());
    }
    static long floats(const Shape& shape) {
        return 2 * kTokens * shape.wide() + std::max(shape.matrix(), kTokens * shape.wide());
    }
};

// Copy tokens, `stride` apart, for products over them.
template <typename Number, typename T>
void copy_tokens(const Shape& shape, const T* from, long stride, long tokens, Number* to) {
    for (long n = 0; n < tokens; ++n)
        copy_token(from + n * stride, shape.depth, n, to + n / numbers_in<Number> * shape.wide());
}

// Add x², |x| or x of each channel of tokens that are `stride` apart.
template <typename T>
void add_channels(const Shape& shape, const T* from, long stride, long tokens, float* sums) {
    for (long c = 0; c < shape.depth; c += kBlock) {
        Vec sum = load_block(sums + c);
        for (long n = 0; n < tokens; ++n) {
            const Vec x = load_some(from + n * stride + c, std::min(kBlock, shape.depth - c));
            sum += shape.kind == kXca ? x * x : shape.kind == kInLine ? x : (x < 0.0f ? -x : x);
        }
        store_block(sums + c, sum);
    }
}

// Sum over a chunk. Queries, keys and values of a token lie side by side as a rule, so they are read together.
template <typename Number, typename T>
void sum_chunk(const Shape& shape, const Chunk& chunk, const Maps<T>& maps, const Sums& sums,
               Scratch<Number>& scratch) {
    const long depth = shape.depth, wide = shape.wide(), each = numbers_in<Number>;
    for (long first = chunk.first; first < chunk.first + kChunk; first += kTokens) {
        const long queries = std::min(kTokens, shape.queries - first), keys = std::min(kTokens, shape.keys - first);
        const T* const q = maps.q + chunk.in_map(shape.q, first, depth);
        const T* const k = maps.k + chunk.in_map(shape.k, first, depth);
        const T* const v = maps.v + chunk.in_map(shape.v, first, depth);
        if (queries > 0 && shape.kind != kInLine) add_channels(shape, q, shape.q.token, queries, sums.others);
        if (keys <= 0) continue;
        add_channels(shape, k, shape.k.token, keys, sums.keys);
        if (shape.kind == kInLine) add_channels(shape, v, shape.v.token, keys, sums.others);
        const bool is_xca = shape.kind == kXca;
        copy_tokens(shape, is_xca ? q : k, is_xca ? shape.q.token : shape.k.token, keys, scratch.left);
        copy_tokens(shape, is_xca ? k : v, is_xca ? shape.k.token : shape.v.token, keys, scratch.right);
        matmul({scratch.left, 1, wide}, scratch.right, wide, scratch.product, wide, depth, round_up(keys, each) / each,
               wide / kBlock);
        for (long i = 0; i < depth * wide; ++i) sums.matrix[i] += scratch.product[i];
    }
}

// Make the matrix that each token is multiplied by, from the right, out of the sums over all tokens.
void make_matrix(const Shape& shape, const Sums& sums, float temperature, float* matrix) {
    const long depth = shape.depth, wide = shape.wide();
    std::fill_n(matrix, shape.matrix(), 0.0f);
    if (shape.kind == kInLine) {
        const float share = 1.0f / shape.keys, factor = share / std::sqrt(static_cast<float>(depth));
        for (long j = 0; j < depth; ++j) {
            const float mean = matrix[depth * wide + j] = sums.others[j] * share;
            for (long i = 0; i < depth; ++i)
                matrix[i * wide + j] = (sums.matrix[i * wide + j] - sums.keys[i] * mean) * factor;
        }
        return;
    }
    for (float* norms : {sums.others, sums.keys})
        for (long i = 0; i < depth; ++i)
            norms[i] = std::max(shape.kind == kXca ? std::sqrt(norms[i]) : norms[i], kSmallestNorm);
    for (long i = 0; i < depth; ++i) {
        float* const row = sums.matrix + i * wide;
        if (shape.kind == kSima) {
            const float factor = 1.0f / sums.others[i] / sums.keys[i];
            for (long j = 0; j < depth; ++j) matrix[i * wide + j] = row[j] * factor;
            continue;
        }
        const float factor = temperature / sums.others[i];
        for (long j = 0; j < depth; ++j) row[j] *= factor / sums.keys[j];
        const float total = soften(row, depth, wide / kBlock);
        for (long j = 0; j < depth; ++j) matrix[j * wide + i] = row[j] / total;
    }
}

// Multiply a chunk of tokens of a map by the matrix.
template <typename Number, typename T>
void apply_to_chunk(const Shape& shape, const Chunk& chunk, const T* mixed, const Strides& strides, const float* matrix,
                    const T* add, T* out, Scratch<Number>& scratch) {
    const long depth = shape.depth, wide = shape.wide(), channels = shape.heads * depth;
    const Strides to = {shape.queries * channels, channels};
    const long end = chunk.end(shape.queries);
    for (long first = chunk.first; first < end; first += kTokens) {
        const long rows = std::min(kTokens, end - first);
        for (long n = 0; n < rows; ++n)
            copy_row(mixed + chunk.in_map(strides, first + n, depth), depth, scratch.left + n * wide);
        matmul({scratch.left, wide, 1}, reinterpret_cast<const Number*>(matrix), wide, scratch.product, wide, rows,
               depth / numbers_in<Number>, wide / kBlock);
        for (long n = 0; n < rows; ++n) {
            T* const result = out + chunk.in_map(to, first + n, depth);
            for (long c = 0; c < depth; c += kBlock) {
                const long numbers = std::min(kBlock, depth - c);
                Vec value = load_block(scratch.product + n * wide + c);
                if (add) {
                    value += load_block(matrix + depth * wide + c);
                    value += load_some(add + chunk.in_map(shape.add, first + n, depth) + c, numbers);
                }
                store_some(result + c, value, numbers);
            }
        }
    }
}

template <typename Number, typename T>
void attend(const Shape& shape, const Maps<T>& maps, const float* temperatures, T* out, float* memory) {
    const long chunks = shape.chunks(), heads = shape.images * shape.heads;
    float* const all_sums = memory + shape.threads * Scratch<Number>::floats(shape);
    float* const matrices = all_sums + heads * chunks * shape.sums();
    const bool is_xca = shape.kind == kXca;
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch<Number> scratch(shape, memory + omp_get_thread_num() * Scratch<Number>::floats(shape));
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece) {
            float* const sums = all_sums + piece * shape.sums();
            std::fill_n(sums, shape.sums(), 0.0f);
            sum_chunk(shape, Chunk(piece, shape.heads, shape.tokens()), maps, Sums(shape, sums), scratch);
        }
#pragma omp for schedule(static)
        for (long head = 0; head < heads; ++head) {
            float* const sums = all_sums + head * chunks * shape.sums();
            float* const matrix = matrices + head * shape.matrix();
            add_chunks(sums, chunks, shape.sums());
            make_matrix(shape, Sums(shape, sums), is_xca ? temperatures[head % shape.heads] : 0.0f, matrix);
            pack_rows(matrix, shape.depth, shape.wide(), scratch.left);
        }
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece)
            apply_to_chunk(shape, Chunk(piece, shape.heads, shape.tokens()), is_xca ? maps.v : maps.q,
                           is_xca ? shape.v : shape.q, matrices + piece / chunks * shape.matrix(), maps.add, out,
                           scratch);
    }
}

}  // namespace

// The number of floats of scratch memory for all threads.
extern "C" long sema_channel_scratch_floats(const Shape* shape) {
    const long heads = shape->images * shape->heads;
    return shape->threads * Scratch<float>::floats(*shape) + heads * (shape->chunks() * shape->sums() + shape->matrix());
}

// `temperatures`: one a head for XCA, otherwise null. `add`: a map for InLine, otherwise null.
extern "C" void sema_channels_float32(const Shape* shape, const float* q, const float* k, const float* v,
                                      const float* temperatures, const float* add, float* out, float* scratch) {
    attend<float, float>(*shape, {q, k, v, add}, temperatures, out, scratch);
}

extern "C" void sema_channels_bfloat16(const Shape* shape, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                                       const float* temperatures, const BFloat16* add, BFloat16* out, float* scratch) {
    attend<float, BFloat16>(*shape, {q, k, v, add}, temperatures, out, scratch);
}

#ifdef __AVX512BF16__
// Multiplies pairs; the depth must be even.
extern "C" void sema_channels_pairs(const Shape* shape, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                                    const float* temperatures, const BFloat16* add, BFloat16* out, float* scratch) {
    attend<Pair, BFloat16>(*shape, {q, k, v, add}, temperatures, out, scratch);
}
#endif
