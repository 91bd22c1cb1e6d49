// Linear attention with features φ(x) = ELU(x) + 1, with and without rotary positions, or with features that are given
// in the place of queries and keys. It is added to the output in one pass.
//
// Legend: B images, H×W = N tokens, C channels, h heads, d = C / h, R the rotation of a position (MILA), or nothing.
//
//     out_i ← (out_i + (1/N) Σ_j ⟨R φ(q_i), R φ(k_j)⟩ v_j / (φ(q_i)·k̄ + ε)) · gate_i,  k̄ = (1/N) Σ_j φ(k_j)
//
// The sums over j make one d×d matrix. Tokens are cut into chunks; a chunk of one head of one image is one piece of
// work, first to make sums, then to apply their total. Products and sums are float32, whatever the tensors hold.

#include <omp.h>

#include "products.h"

namespace {

// Tokens in the L1 or L2 cache at once.
constexpr long kTokens = 64;
constexpr float kEpsilon = 1e-6f;

struct Shape {
    long images, height, width, heads, depth;  // depth: d, twice a multiple of a block
    long given;                                // 1: q and k are φ(q) and φ(k)
    long positions;                            // rows of the table of rotations, 0 for none
    long activation;                           // of the gate
    long threads;
    Strides qk, v, out, gate;

    long tokens() const { return height * width; }
    long channels() const { return heads * depth; }
    long chunks() const { return count_chunks(tokens()); }
    long sums() const { return depth * depth + depth; }  // the matrix, then the sum of φ(k)
};

inline Vec feature(Vec x) { return exponential(x > 0.0f ? Vec{} : x) + (x > 0.0f ? x : Vec{}); }

// Memory of one thread, each array of kTokens rows of d numbers, but for `part` of d rows.
struct Scratch {
    float *features, *turned, *values, *part;

    Scratch(const Shape& shape, float* memory) {
        features = memory;
        turned = features + kTokens * shape.depth;
        values = turned + kTokens * shape.depth;
        part = values + kTokens * shape.depth;
    }
    static long floats(const Shape& shape) { return (3 * kTokens + shape.depth) * shape.depth; }
};

// Compute φ and R φ of a few tokens. The first half of a head's channels holds the real parts of all pairs.
template <typename T>
void make_features(const Shape& shape, const Chunk& chunk, const T* x, const float* table, long first, long rows,
                   Scratch& scratch) {
    const long half = shape.depth / 2, pairs = shape.channels() / 4;
    const long pair = chunk.head * half;  // of all pairs of a token; the first C/4 turn with the row
    for (long n = 0; n < rows; ++n) {
        const T* from = x + chunk.in_map(shape.qk, first + n, shape.depth);
        float *features = scratch.features + n * shape.depth, *turned = scratch.turned + n * shape.depth;
        const long row = (first + n) / shape.width, column = (first + n) % shape.width;
        const long cosine_at = pair < pairs ? row * pairs + pair : column * pairs + pair - pairs;
        const long sine_at = cosine_at + shape.positions * pairs;
        for (long c = 0; c < half; c += kBlock) {
            Vec real = load_block(from + c), imaginary = load_block(from + half + c);
            if (!shape.given) {
                real = feature(real);
                imaginary = feature(imaginary);
            }
            store_block(features + c, real);
            store_block(features + half + c, imaginary);
            if (!shape.positions) continue;
            const Vec cosine = load_block(table + cosine_at + c), sine = load_block(table + sine_at + c);
            store_block(turned + c, real * cosine - imaginary * sine);
            store_block(turned + half + c, real * sine + imaginary * cosine);
        }
    }
}

// The sums of one chunk.
template <typename T>
void sum_chunk(const Shape& shape, const Chunk& chunk, const T* k, const T* v, const float* table, float* sums,
               Scratch& scratch) {
    const long depth = shape.depth;
    float* const feature_sums = sums + depth * depth;
    std::fill_n(sums, shape.sums(), 0.0f);
    for (long first = chunk.first; first < chunk.end(shape.tokens()); first += kTokens) {
        const long rows = std::min(kTokens, chunk.end(shape.tokens()) - first);
        make_features(shape, chunk, k, table, first, rows, scratch);
        for (long n = 0; n < rows; ++n) {
            const T* value = v + chunk.in_map(shape.v, first + n, depth);
            for (long c = 0; c < depth; c += kBlock) {
                store_block(scratch.values + n * depth + c, load_block(value + c));
                const Vec more = load_block(scratch.features + n * depth + c);
                store_block(feature_sums + c, load_block(feature_sums + c) + more);
            }
        }
        const float* left = shape.positions ? scratch.turned : scratch.features;
        matmul({left, 1, depth}, scratch.values, depth, scratch.part, depth, depth, rows, depth / kBlock);
        for (long i = 0; i < depth * depth; ++i) sums[i] += scratch.part[i];
    }
}

// Apply the total of the sums, in `total`, to one chunk.
template <typename T>
void apply_to_chunk(const Shape& shape, const Chunk& chunk, const T* q, const float* table, const float* total,
                    const T* gate, T* out, Scratch& scratch) {
    const long depth = shape.depth;
    const float share = 1.0f / shape.tokens();
    for (long first = chunk.first; first < chunk.end(shape.tokens()); first += kTokens) {
        const long rows = std::min(kTokens, chunk.end(shape.tokens()) - first);
        make_features(shape, chunk, q, table, first, rows, scratch);
        const float* left = shape.positions ? scratch.turned : scratch.features;
        matmul({left, depth, 1}, total, depth, scratch.values, depth, rows, depth, depth / kBlock);
        for (long n = 0; n < rows; ++n) {
            Vec products = Vec{};
            for (long c = 0; c < depth; c += kBlock)
                products += load_block(scratch.features + n * depth + c) * load_block(total + depth * depth + c);
            const float sum = reduce(products, [](auto a, auto b) { return a + b; });
            const float factor = share / (sum * share + kEpsilon);
            T* const result = out + chunk.in_map(shape.out, first + n, depth);
            const long factors = chunk.in_map(shape.gate, first + n, depth);
            for (long c = 0; c < depth; c += kBlock) {
                Vec value = load_block(result + c) + load_block(scratch.values + n * depth + c) * factor;
                if (gate) value *= activated(load_block(gate + factors + c), shape.activation);
                store_block(result + c, value);
            }
        }
    }
}

template <typename T>
void attend(const Shape& shape, const T* qk, const T* v, const float* table, const T* gate, T* out, float* memory) {
    const long chunks = shape.chunks(), heads = shape.images * shape.heads;
    float* const sums = memory + shape.threads * Scratch::floats(shape);
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(shape, memory + omp_get_thread_num() * Scratch::floats(shape));
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece)
            sum_chunk(shape, Chunk(piece, shape.heads, shape.tokens()), qk + shape.channels(), v, table,
                      sums + piece * shape.sums(), scratch);
#pragma omp for schedule(static)
        for (long head = 0; head < heads; ++head) add_chunks(sums + head * chunks * shape.sums(), chunks, shape.sums());
#pragma omp for schedule(static)
        for (long piece = 0; piece < heads * chunks; ++piece)
            apply_to_chunk(shape, Chunk(piece, shape.heads, shape.tokens()), qk, table,
                           sums + piece / chunks * chunks * shape.sums(), gate, out, scratch);
    }
}

}  // namespace

// The number of floats of scratch memory for all threads.
extern "C" long sema_linear_scratch_floats(const Shape* shape) {
    const long pieces = shape->images * shape->heads * shape->chunks();
    return shape->threads * Scratch::floats(*shape) + pieces * shape->sums();
}

// `table`: cosines, then sines, each (positions, C / 4); null if there are no positions.
extern "C" void sema_linear_float32(const Shape* shape, const float* qk, const float* v, const float* table,
                                    const float* gate, float* out, float* scratch) {
    attend(*shape, qk, v, table, gate, out, scratch);
}

extern "C" void sema_linear_bfloat16(const Shape* shape, const BFloat16* qk, const BFloat16* v, const float* table,
                                     const BFloat16* gate, BFloat16* out, float* scratch) {
    attend(*shape, qk, v, table, gate, out, scratch);
}
