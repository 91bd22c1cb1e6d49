// Softmax attention inside windows of a map, added to the output in one pass; no map is copied into windows.
//
// Legend: B images, H×W tokens, C channels, h heads, d = C / h, t tokens of one window, blocks of 8 or 16 numbers.
//
// A window of one head is one piece of work. Its keys are laid out channel by channel and its values token by token, in
// blocks that fill whole vector registers; scores, weights and sums never leave the L1 cache. Products and sums are
// float32, whatever the tensors hold. Where the CPU multiplies pairs of bfloat16, two neighbouring channels of queries
// and keys form a pair, and two tokens of weights and values; the weights are then rounded to bfloat16.

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "products.h"

namespace {

struct Shape {
    long images, height, width, heads, depth, size;  // depth: d
    long shift;                                      // windows are cut from the map rolled by -shift both ways
    long activation;                                 // of the gate
    long threads;
    Strides qk, v, out, gate;

    long across() const { return (width + size - 1) / size; }
    long down() const { return (height + size - 1) / size; }
};

// Memory of one thread: five arrays, each of whole cache lines.
struct Scratch {
    float *queries, *keys, *scores, *values, *sums;

    Scratch(const Shape& shape, float* memory) {
        queries = memory;
        keys = queries + of_tokens(shape);
        scores = keys + of_channels(shape);
        values = scores + of_pairs(shape);
        sums = values + of_tokens(shape);
    }
    static long floats(const Shape& shape) { return 3 * of_tokens(shape) + of_channels(shape) + of_pairs(shape); }

  private:
    static long tokens(const Shape& shape) { return shape.size * shape.size; }
    static long of_tokens(const Shape& shape) { return round_up(tokens(shape) * round_up(shape.depth, kBlock), 16); }
    static long of_channels(const Shape& shape) { return round_up(shape.depth * round_up(tokens(shape), kBlock), 16); }
    static long of_pairs(const Shape& shape) { return round_up(tokens(shape) * round_up(tokens(shape), kBlock), 16); }
};

// The location of one piece of work: a window of one image, and a head.
struct Place {
    long image, top, left, head, rows, columns;
    Place(const Shape& shape, long piece) {
        const long across = shape.across(), down = shape.down();
        const long window = piece / shape.heads;
        head = piece % shape.heads;
        left = window % across * shape.size;
        top = window / across % down * shape.size;
        image = window / across / down;
        rows = shape.height - top < shape.size ? shape.height - top : shape.size;
        columns = shape.width - left < shape.size ? shape.width - left : shape.size;
    }
    // Where the numbers of a token and this head begin in a map.
    long in_map(const Shape& shape, const Strides& strides, long i, long j) const {
        return image * strides.image + in_image(shape, i, j) * strides.token + head * shape.depth;
    }
    // Which part a token belongs to, of the four that a roll moves; parts do not attend to one another.
    long part(const Shape& shape, long i, long j) const {
        return 2 * (top + i >= shape.height - shape.shift) + (left + j >= shape.width - shape.shift);
    }

  private:
    long in_image(const Shape& shape, long i, long j) const {
        long row = top + i + shape.shift, column = left + j + shape.shift;
        if (row >= shape.height) row -= shape.height;
        if (column >= shape.width) column -= shape.width;
        return row * shape.width + column;
    }
};

// Prefetch the inputs of a piece while another is computed.
template <typename T>
void prefetch(const Shape& shape, const Place& place, const T* qk, const T* v, const T* gate, const T* out) {
    const long line = 64 / sizeof(T), channels = shape.heads * shape.depth;
    for (long i = 0; i < place.rows; ++i) {
        for (long j = 0; j < place.columns; ++j) {
            const T* q = qk + place.in_map(shape, shape.qk, i, j);
            const T* value = v + place.in_map(shape, shape.v, i, j);
            const T* result = out + place.in_map(shape, shape.out, i, j);
            const long factor = place.in_map(shape, shape.gate, i, j);
            for (long c = 0; c < shape.depth; c += line) {
                __builtin_prefetch(q + c);
                __builtin_prefetch(q + channels + c);
                __builtin_prefetch(value + c);
                __builtin_prefetch(result + c, 1);
                if (gate) __builtin_prefetch(gate + factor + c);
            }
        }
    }
}

// Add the bias of a head to the scores of a window, and mask pairs that only the roll brought together.
inline void add_bias(const Shape& shape, const Place& place, const float* bias, float* scores, long wide) {
    const long size = shape.size, all_tokens = size * size;
    const long bottom = place.top + place.rows - 1, right = place.left + place.columns - 1;
    const bool parted = shape.shift && (bottom >= shape.height - shape.shift || right >= shape.width - shape.shift);
    for (long i = 0; i < place.rows * place.columns; ++i) {
        const long own_row = i / place.columns, own_column = i % place.columns;
        float* row = scores + i * wide;
        if (bias) {
            const float* of_query = bias + (place.head * all_tokens + own_row * size + own_column) * all_tokens;
            for (long a = 0; a < place.rows; ++a)
                for (long b = 0; b < place.columns; ++b) row[a * place.columns + b] += of_query[a * size + b];
        }
        if (!parted) continue;
        const long own = place.part(shape, own_row, own_column);
        for (long a = 0; a < place.rows; ++a)
            for (long b = 0; b < place.columns; ++b)
                if (place.part(shape, a, b) != own) row[a * place.columns + b] = -__builtin_inff();
    }
}

// Copy d channels of a query or key; the last block of a row ends in zeros.
template <typename T>
void copy_row(const T* from, long depth, float* to) {
    for (long c = 0; c < depth; c += kBlock) store_block(to + c, load_some(from + c, std::min(kBlock, depth - c)));
}
inline void copy_row(const BFloat16* from, long depth, Pair* to) {
    for (long c = 0; c < depth; c += kBlock)
        if (c + kBlock <= depth) std::memcpy(to + c / 2, from + c, sizeof(HalfVec));
        else std::memcpy(to + c / 2, from + c, (depth - c) * sizeof(BFloat16));
}

// Copy d channels of a value into a row, or into half of a row of pairs.
template <typename T>
void copy_value(const T* from, long depth, long, float* to) {
    copy_row(from, depth, to);
}
inline void copy_value(const BFloat16* from, long depth, long token, Pair* to) {
    for (long c = 0; c < depth; c += kBlock) {
        const BitVec bits = reinterpret_cast<BitVec>(load_some(from + c, std::min(kBlock, depth - c)));
        BitVec pairs;
        std::memcpy(&pairs, to + c, sizeof pairs);
        pairs = token % 2 ? pairs | bits : bits >> 16;  // the last token may have no second one
        std::memcpy(to + c, &pairs, sizeof pairs);
    }
}

template <typename Number, typename T>
void attend_in_window(const Shape& shape, const Place& place, const T* qk, const T* v, const float* bias,
                      const T* pooled, const T* gate, T* out, Scratch& scratch) {
    constexpr long each = std::is_same_v<Number, Pair> ? 2 : 1;
    const long depth = shape.depth, deep = round_up(depth, kBlock), channels = shape.heads * depth;
    const long tokens = place.rows * place.columns, blocks = round_up(tokens, kBlock) / kBlock, wide = blocks * kBlock;
    Number* const queries = reinterpret_cast<Number*>(scratch.queries);
    Number* const keys = reinterpret_cast<Number*>(scratch.keys);
    Number* const key_rows = reinterpret_cast<Number*>(scratch.sums);  // the sums are not made yet
    Number* const values = reinterpret_cast<Number*>(scratch.values);
    const Number* const weights = reinterpret_cast<Number*>(scratch.scores);
    for (long i = 0; i < place.rows; ++i) {
        for (long j = 0; j < place.columns; ++j) {
            const long token = i * place.columns + j;
            const T* q = qk + place.in_map(shape, shape.qk, i, j);
            copy_row(q, depth, queries + token * deep);
            copy_row(q + channels, depth, key_rows + token * deep);
            copy_value(v + place.in_map(shape, shape.v, i, j), depth, token, values + token / each * deep);
        }
    }
    transpose(key_rows, deep, tokens, depth / each, keys, wide);
    matmul({queries, deep, 1}, keys, wide, scratch.scores, wide, tokens, depth / each, blocks);
    if (bias || shape.shift) add_bias(shape, place, bias, scratch.scores, wide);
    float* const factors = scratch.keys;  // the keys are not read again
    for (long i = 0; i < tokens; ++i) {
        factors[i] = 1.0f / soften(scratch.scores + i * wide, tokens, blocks);
        pack(scratch.scores + i * wide, blocks, queries);
    }
    matmul({weights, wide, 1}, values, deep, scratch.sums, deep, tokens, round_up(tokens, each) / each, deep / kBlock);
    const T* const mean = pooled ? pooled + (place.image * shape.heads + place.head) * depth : nullptr;
    for (long i = 0; i < place.rows; ++i) {
        for (long j = 0; j < place.columns; ++j) {
            const long token = i * place.columns + j;
            const float* sums = scratch.sums + token * deep;
            T* const result = out + place.in_map(shape, shape.out, i, j);
            const long factor = place.in_map(shape, shape.gate, i, j);
            for (long c = 0; c < depth; c += kBlock) {
                const long numbers = std::min(kBlock, depth - c);
                Vec value = load_some(result + c, numbers) + load_block(sums + c) * factors[token];
                if (mean) value += load_some(mean + c, numbers);
                if (gate) value *= activated(load_some(gate + factor + c, numbers), shape.activation);
                store_some(result + c, value, numbers);
            }
        }
    }
}

template <typename Number, typename T>
void attend(const Shape& shape, const T* qk, const T* v, const float* bias, const T* pooled, const T* gate, T* out,
            float* memory) {
    const long pieces = shape.images * shape.down() * shape.across() * shape.heads;
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(shape, memory + omp_get_thread_num() * Scratch::floats(shape));
#pragma omp for schedule(static)
        for (long piece = 0; piece < pieces; ++piece) {
            if (piece + 1 < pieces) prefetch(shape, Place(shape, piece + 1), qk, v, gate, out);
            attend_in_window<Number>(shape, Place(shape, piece), qk, v, bias, pooled, gate, out, scratch);
        }
    }
}

}  // namespace

// The number of floats of scratch memory for all threads.
extern "C" long sema_scratch_floats(const Shape* shape) {
    return Scratch::floats(*shape) * shape->threads;
}

extern "C" void sema_attend_float32(const Shape* shape, const float* qk, const float* v, const float* bias,
                                    const float* pooled, const float* gate, float* out, float* scratch) {
    attend<float>(*shape, qk, v, bias, pooled, gate, out, scratch);
}

extern "C" void sema_attend_bfloat16(const Shape* shape, const BFloat16* qk, const BFloat16* v, const float* bias,
                                     const BFloat16* pooled, const BFloat16* gate, BFloat16* out, float* scratch) {
#ifdef __AVX512BF16__
    if (shape->depth % 2 == 0) return attend<Pair>(*shape, qk, v, bias, pooled, gate, out, scratch);
#endif
    attend<float>(*shape, qk, v, bias, pooled, gate, out, scratch);
}
