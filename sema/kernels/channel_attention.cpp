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
// tensors hold.

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

// Add x², |x| or x of each channel.
void add_channels(const Shape& shape, const float* rows, long count, float* sums) {
    for (long c = 0; c < shape.wide(); c += kBlock) {
        Vec sum = load_block(sums + c);
        for (long n = 0; n < count; ++n) {
            const Vec x = load_block(rows + n * shape.wide() + c);
            sum += shape.kind == kXca ? x * x : shape.kind == kInLine ? x : (x < 0.0f ? -x : x);
        }
        store_block(sums + c, sum);
    }
}

// Sum over a chunk. Queries, keys and values of a token lie side by side as a rule, so they are read together.
template <typename T>
void sum_chunk(const Shape& shape, const Chunk& chunk, const Maps<T>& maps, const Sums& sums, Scratch& scratch) {
    const long depth = shape.depth, wide = shape.wide();
    for (long first = chunk.first; first < chunk.first + kChunk; first += kTokens) {
        const long queries = std::min(kTokens, shape.queries - first), keys = std::min(kTokens, shape.keys - first);
        if (queries > 0 && shape.kind != kInLine) {
            const T* const q = maps.q + chunk.in_map(shape.q, first, depth);
            load_rows(shape, q, shape.q.token, queries, scratch.queries);
            add_channels(shape, scratch.queries, queries, sums.others);
        }
        if (keys <= 0) continue;
        load_rows(shape, maps.k + chunk.in_map(shape.k, first, depth), shape.k.token, keys, scratch.keys);
        add_channels(shape, scratch.keys, keys, sums.keys);
        if (shape.kind != kXca)
            load_rows(shape, maps.v + chunk.in_map(shape.v, first, depth), shape.v.token, keys, scratch.values);
        if (shape.kind == kInLine) add_channels(shape, scratch.values, keys, sums.others);
        const float* const left = shape.kind == kXca ? scratch.queries : scratch.keys;
        const float* const right = shape.kind == kXca ? scratch.keys : scratch.values;
        matmul({left, 1, wide}, right, wide, scratch.part, wide, depth, keys, wide / kBlock);
        for (long i = 0; i < depth * wide; ++i) sums.matrix[i] += scratch.part[i];
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
template <typename T>
void apply_to_chunk(const Shape& shape, const Chunk& chunk, const T* mixed, const Strides& strides, const float* matrix,
                    const T* add, T* out, Scratch& scratch) {
    const long wide = shape.wide(), channels = shape.heads * shape.depth;
    const Strides to = {shape.queries * channels, channels};
    const long end = chunk.end(shape.queries);
    for (long first = chunk.first; first < end; first += kTokens) {
        const long rows = std::min(kTokens, end - first);
        load_rows(shape, mixed + chunk.in_map(strides, first, shape.depth), strides.token, rows, scratch.queries);
        matmul({scratch.queries, wide, 1}, matrix, wide, scratch.values, wide, rows, shape.depth, wide / kBlock);
        for (long n = 0; n < rows; ++n) {
            T* const result = out + chunk.in_map(to, first + n, shape.depth);
            for (long c = 0; c < shape.depth; c += kBlock) {
                const long numbers = std::min(kBlock, shape.depth - c);
                Vec value = load_block(scratch.values + n * wide + c);
                if (add) {
                    value += load_block(matrix + shape.depth * wide + c);
                    value += load_some(add + chunk.in_map(shape.add, first + n, shape.depth) + c, numbers);
                }
                store_some(result + c, value, numbers);
            }
        }
    }
}

template <typename T>
void attend(const Shape& shape, const Maps<T>& maps, const float* temperatures, T* out, float* memory) {
    const long chunks = shape.chunks(), heads = shape.images * shape.heads;
    float* const all_sums = memory + shape.threads * Scratch::floats(shape);
    float* const matrices = all_sums + heads * chunks * shape.sums();
    const bool is_xca = shape.kind == kXca;
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(shape, memory + omp_get_thread_num() * Scratch::floats(shape));
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece) {
            float* const sums = all_sums + piece * shape.sums();
            std::fill_n(sums, shape.sums(), 0.0f);
            sum_chunk(shape, Chunk(piece, shape.heads, shape.tokens()), maps, Sums(shape, sums), scratch);
        }
#pragma omp for schedule(static)
        for (long head = 0; head < heads; ++head) {
            float* const sums = all_sums + head * chunks * shape.sums();
            add_chunks(sums, chunks, shape.sums());
            make_matrix(shape, Sums(shape, sums), is_xca ? temperatures[head % shape.heads] : 0.0f,
                        matrices + head * shape.matrix());
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
    return shape->threads * Scratch::floats(*shape) + heads * (shape->chunks() * shape->sums() + shape->matrix());
}

// `temperatures`: one a head for XCA, otherwise null. `add`: a map for InLine, otherwise null.
extern "C" void sema_channels_float32(const Shape* shape, const float* q, const float* k, const float* v,
                                      const float* temperatures, const float* add, float* out, float* scratch) {
    attend<float>(*shape, {q, k, v, add}, temperatures, out, scratch);
}

extern "C" void sema_channels_bfloat16(const Shape* shape, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                                       const float* temperatures, const BFloat16* add, BFloat16* out, float* scratch) {
    attend<BFloat16>(*shape, {q, k, v, add}, temperatures, out, scratch);
}
