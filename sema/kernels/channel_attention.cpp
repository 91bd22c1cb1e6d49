// Attentions that work through a d×d matrix of sums over all tokens: XCiT's (XCA) and SimA's.
//
// Legend: B images, N tokens, C channels, h heads, d = C / h, τ one temperature a head, blocks of 8 or 16 numbers.
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

// Tokens of a chunk, and tokens in the L1 or L2 cache at once.
constexpr long kChunk = 512, kTokens = 64;
constexpr float kSmallestNorm = 1e-12f;

struct Shape {
    long images, tokens, heads, depth, threads;  // depth: d

    long wide() const { return round_up(depth, kBlock); }
    long channels() const { return heads * depth; }
    long chunks() const { return (tokens + kChunk - 1) / kChunk; }
    long matrix() const { return round_up(depth * wide(), 16); }
    long sums() const { return matrix() + 2 * round_up(wide(), 16); }  // a matrix, then norms of queries and keys
};

// A chunk of tokens of one head of one image.
struct Place {
    long image, head, first, last;
    Place(const Shape& shape, long piece) {
        const long chunk = piece % shape.chunks();
        head = piece / shape.chunks() % shape.heads;
        image = piece / shape.chunks() / shape.heads;
        first = chunk * kChunk;
        last = std::min(first + kChunk, shape.tokens);
    }
    // Where the numbers of a token and this head begin in maps of so many channels.
    long at(const Shape& shape, long token, long channels) const {
        return (image * shape.tokens + token) * channels + head * shape.depth;
    }
};

// The sums over a chunk, or over all tokens of a head: views of one array.
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

template <typename T>
void sum_chunk(const Shape& shape, const Place& place, const T* qkv, bool is_xca, float* memory, Scratch& scratch) {
    const long depth = shape.depth, wide = shape.wide(), channels = shape.channels();
    const Sums sums(shape, memory);
    std::fill_n(memory, shape.sums(), 0.0f);
    for (long first = place.first; first < place.last; first += kTokens) {
        const long rows = std::min(kTokens, place.last - first);
        const T* const q = qkv + place.at(shape, first, 3 * channels);
        load_rows(shape, q, 3 * channels, rows, scratch.queries);
        load_rows(shape, q + channels, 3 * channels, rows, scratch.keys);
        if (!is_xca) load_rows(shape, q + 2 * channels, 3 * channels, rows, scratch.values);
        add_sizes(shape, scratch.queries, rows, is_xca, sums.query_norms);
        add_sizes(shape, scratch.keys, rows, is_xca, sums.key_norms);
        const float* const left = is_xca ? scratch.queries : scratch.keys;
        const float* const right = is_xca ? scratch.keys : scratch.values;
        matmul({left, 1, wide}, right, wide, scratch.part, wide, depth, rows, wide / kBlock);
        for (long i = 0; i < depth * wide; ++i) sums.matrix[i] += scratch.part[i];
    }
}

// Make the matrix that each token is multiplied by, from the right, out of the sums of all chunks.
void make_matrix(const Shape& shape, const float* of_chunks, const float* temperature, float* memory, float* matrix) {
    const long depth = shape.depth, wide = shape.wide();
    const Sums sums(shape, memory);
    std::fill_n(memory, shape.sums(), 0.0f);
    for (long chunk = 0; chunk < shape.chunks(); ++chunk)
        for (long i = 0; i < shape.sums(); ++i) memory[i] += of_chunks[chunk * shape.sums() + i];
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

template <typename T>
void apply_to_chunk(const Shape& shape, const Place& place, const T* mixed, const float* matrix, T* out,
                    Scratch& scratch) {
    const long wide = shape.wide(), channels = shape.channels();
    for (long first = place.first; first < place.last; first += kTokens) {
        const long rows = std::min(kTokens, place.last - first);
        load_rows(shape, mixed + place.at(shape, first, 3 * channels), 3 * channels, rows, scratch.queries);
        matmul({scratch.queries, wide, 1}, matrix, wide, scratch.values, wide, rows, shape.depth, wide / kBlock);
        for (long n = 0; n < rows; ++n)
            for (long c = 0; c < shape.depth; c += kBlock)
                store_some(out + place.at(shape, first + n, channels) + c, load_block(scratch.values + n * wide + c),
                           std::min(kBlock, shape.depth - c));
    }
}

template <typename T>
void attend(const Shape& shape, const T* qkv, const float* temperatures, T* out, float* memory) {
    const long chunks = shape.chunks(), heads = shape.images * shape.heads;
    float* const of_chunks = memory + shape.threads * Scratch::floats(shape);
    float* const of_heads = of_chunks + heads * chunks * shape.sums();
    float* const matrices = of_heads + heads * shape.sums();
    const T* const mixed = temperatures ? qkv + 2 * shape.channels() : qkv;
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(shape, memory + omp_get_thread_num() * Scratch::floats(shape));
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece)
            sum_chunk(shape, Place(shape, piece), qkv, temperatures, of_chunks + piece * shape.sums(), scratch);
#pragma omp for schedule(static)
        for (long head = 0; head < heads; ++head)
            make_matrix(shape, of_chunks + head * chunks * shape.sums(),
                        temperatures ? temperatures + head % shape.heads : nullptr, of_heads + head * shape.sums(),
                        matrices + head * shape.matrix());
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece)
            apply_to_chunk(shape, Place(shape, piece), mixed, matrices + piece / chunks * shape.matrix(), out, scratch);
    }
}

}  // namespace

// The number of floats of scratch memory for all threads.
extern "C" long sema_channel_scratch_floats(const Shape* shape) {
    const long heads = shape->images * shape->heads;
    return shape->threads * Scratch::floats(*shape) + heads * ((shape->chunks() + 1) * shape->sums() + shape->matrix());
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
