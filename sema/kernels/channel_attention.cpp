// Attentions that work through a d×d matrix of sums over all tokens: XCiT's (XCA) and SimA's.
//
// Legend: B images, N tokens, C channels, h heads, d = C / h, τ one temperature a head, blocks of 8 or 16 numbers.
// XCA has as many queries as keys; SimA may have more queries.
//
//     XCA:   out = v Mᵀ,  M = softmax(τ q̂ᵀ k̂) by rows,  x̂: each channel over its ℓ2 norm over the tokens
//     SimA:  out = q̂ M,   M = k̂ᵀ v,                     x̂: each channel over its ℓ1 norm over the tokens
//
// Tokens are cut into chunks; a chunk of one head of one image is one piece of work, first to make sums, then to apply
// the matrix of all of them. Norms divide the matrix, never the tokens. Products and sums are float32, whatever the
// tensors hold.

#include <omp.h>

#include <cmath>

#include "products.h"

namespace {

// Tokens in the L1 or L2 cache at once.
constexpr long kTokens = 64;
constexpr float kSmallestNorm = 1e-12f;

struct Shape {
    long images, queries, keys, heads, depth, threads;  // depth: d
    Strides q, k, v;

    long wide() const { return round_up(depth, kBlock); }
    long tokens() const { return std::max(queries, keys); }
    long chunks() const { return count_chunks(tokens()); }
    long matrix() const { return round_up(depth * wide(), 16); }
    long sums() const { return matrix() + 2 * round_up(wide(), 16); }  // a matrix, then norms of queries and keys
};

template <typename T>
struct Maps {
    const T *q, *k, *v;
};

// The sums over a chunk or over all tokens: views of one array.
struct Sums {
    float *matrix, *query_norms, *key_norms;
    Sums(const Shape& shape, float* memory)
        : matrix(memory), query_norms(memory + shape.matrix()), key_norms(query_norms + round_up(shape.wide(), 16)) {}
};

// Memory of one thread.
struct Scratch {
    float *queries, *keys, *values, *part;

    Scratch(const Shape& shape, float* memory) {
        queries = memory;
        keys = queries + kTokens * shape.wide();
        values = keys + kTokens * shape.wide();
        part = values + kTokens * shape.wide();
    }
    static long floats(const Shape& shape) { return 3 * kTokens * shape.wide() + shape.matrix(); }
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

// Add the norms of a chunk of queries and keys, and products of the keys with the queries or values of their tokens.
// Queries, keys and values of a token lie side by side as a rule, so they are read together.
template <typename T>
void sum_chunk(const Shape& shape, const Chunk& chunk, const Maps<T>& maps, bool is_xca, const Sums& sums,
               Scratch& scratch) {
    const long depth = shape.depth, wide = shape.wide();
    for (long first = chunk.first; first < chunk.first + kChunk; first += kTokens) {
        const long queries = std::min(kTokens, shape.queries - first), keys = std::min(kTokens, shape.keys - first);
        if (queries > 0) {
            const T* const q = maps.q + chunk.in_map(shape.q, first, depth);
            load_rows(shape, q, shape.q.token, queries, scratch.queries);
            add_sizes(shape, scratch.queries, queries, is_xca, sums.query_norms);
        }
        if (keys <= 0) continue;
        load_rows(shape, maps.k + chunk.in_map(shape.k, first, shape.depth), shape.k.token, keys, scratch.keys);
        add_sizes(shape, scratch.keys, keys, is_xca, sums.key_norms);
        if (!is_xca)
            load_rows(shape, maps.v + chunk.in_map(shape.v, first, shape.depth), shape.v.token, keys, scratch.values);
        const float* const left = is_xca ? scratch.queries : scratch.keys;
        const float* const right = is_xca ? scratch.keys : scratch.values;
        matmul({left, 1, wide}, right, wide, scratch.part, wide, depth, keys, wide / kBlock);
        for (long i = 0; i < depth * wide; ++i) sums.matrix[i] += scratch.part[i];
    }
}

// Make the matrix that each token is multiplied by, from the right, out of the sums over all tokens.
void make_matrix(const Shape& shape, const Sums& sums, const float* temperature, float* matrix) {
    const long depth = shape.depth, wide = shape.wide();
    for (float* norms : {sums.query_norms, sums.key_norms})
        for (long i = 0; i < depth; ++i)
            norms[i] = std::max(temperature ? std::sqrt(norms[i]) : norms[i], kSmallestNorm);
    std::fill_n(matrix, shape.matrix(), 0.0f);
    for (long i = 0; i < depth; ++i) {
        float* const row = sums.matrix + i * wide;
        if (!temperature) {
            const float factor = 1.0f / sums.query_norms[i] / sums.key_norms[i];
            for (long j = 0; j < depth; ++j) matrix[i * wide + j] = row[j] * factor;
            continue;
        }
        const float factor = *temperature / sums.query_norms[i];
        for (long j = 0; j < depth; ++j) row[j] *= factor / sums.key_norms[j];
        const float total = soften(row, depth, wide / kBlock);
        for (long j = 0; j < depth; ++j) matrix[j * wide + i] = row[j] / total;
    }
}

// Multiply a chunk of tokens of a map by the matrix.
template <typename T>
void apply_to_chunk(const Shape& shape, const Chunk& chunk, const T* mixed, const Strides& strides, const float* matrix,
                    T* out, Scratch& scratch) {
    const long wide = shape.wide(), channels = shape.heads * shape.depth;
    const Strides to = {shape.queries * channels, channels};
    const long end = chunk.end(shape.queries);
    for (long first = chunk.first; first < end; first += kTokens) {
        const long rows = std::min(kTokens, end - first);
        load_rows(shape, mixed + chunk.in_map(strides, first, shape.depth), strides.token, rows, scratch.queries);
        matmul({scratch.queries, wide, 1}, matrix, wide, scratch.values, wide, rows, shape.depth, wide / kBlock);
        for (long n = 0; n < rows; ++n)
            for (long c = 0; c < shape.depth; c += kBlock)
                store_some(out + chunk.in_map(to, first + n, shape.depth) + c,
                           load_block(scratch.values + n * wide + c), std::min(kBlock, shape.depth - c));
    }
}

template <typename T>
void attend(const Shape& shape, const Maps<T>& maps, const float* temperatures, T* out, float* memory) {
    const long chunks = shape.chunks(), heads = shape.images * shape.heads;
    float* const all_sums = memory + shape.threads * Scratch::floats(shape);
    float* const matrices = all_sums + heads * chunks * shape.sums();
    const bool is_xca = temperatures != nullptr;
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(shape, memory + omp_get_thread_num() * Scratch::floats(shape));
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece) {
            float* const sums = all_sums + piece * shape.sums();
            std::fill_n(sums, shape.sums(), 0.0f);
            sum_chunk(shape, Chunk(piece, shape.heads, shape.tokens()), maps, is_xca, Sums(shape, sums), scratch);
        }
#pragma omp for schedule(static)
        for (long head = 0; head < heads; ++head) {
            float* const sums = all_sums + head * chunks * shape.sums();
            add_chunks(sums, chunks, shape.sums());
            make_matrix(shape, Sums(shape, sums), is_xca ? temperatures + head % shape.heads : nullptr,
                        matrices + head * shape.matrix());
        }
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece)
            apply_to_chunk(shape, Chunk(piece, shape.heads, shape.tokens()), is_xca ? maps.v : maps.q,
                           is_xca ? shape.v : shape.q, matrices + piece / chunks * shape.matrix(), out, scratch);
    }
}

}  // namespace

// The number of floats of scratch memory for all threads.
extern "C" long sema_channel_scratch_floats(const Shape* shape) {
    const long heads = shape->images * shape->heads;
    return shape->threads * Scratch::floats(*shape) + heads * (shape->chunks() * shape->sums() + shape->matrix());
}

// `temperatures`: one a head for XCA, null for SimA.
extern "C" void sema_channels_float32(const Shape* shape, const float* q, const float* k, const float* v,
                                      const float* temperatures, float* out, float* scratch) {
    attend<float>(*shape, {q, k, v}, temperatures, out, scratch);
}

extern "C" void sema_channels_bfloat16(const Shape* shape, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                                       const float* temperatures, BFloat16* out, float* scratch) {
    attend<BFloat16>(*shape, {q, k, v}, temperatures, out, scratch);
}
