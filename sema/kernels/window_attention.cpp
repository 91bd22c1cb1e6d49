// Softmax attention inside windows of a map, added to the output in one pass; no map is copied into windows.
//
// Legend: B images, H×W tokens, C channels, h heads, d = C / h.
//
// A window of one head is one piece of work.

#include <omp.h>

#include "softmax.h"

namespace {

struct Shape {
    long images, height, width, heads, depth, size;  // depth: d
    long shift;                                      // windows are cut from the map rolled by -shift both ways
    long activation;                                 // of the gate
    long threads;
    Strides qk, v, out, gate;

    long across() const { return (width + size - 1) / size; }
    long down() const { return (height + size - 1) / size; }
    long most_tokens() const { return std::min(size, height) * std::min(size, width); }
};

// A token of a window; the tokens follow one another row by row.
struct Token {
    long columns, row = 0, column = 0;
    void next() {
        if (++column < columns) return;
        column = 0;
        ++row;
    }
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
    long in_map(const Shape& shape, const Strides& strides, const Token& token) const {
        return in_map(shape, strides, token.row, token.column);
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

// Add the bias of a head to the scores of a query; mask keys that only the roll brought to it.
inline void add_bias(const Shape& shape, const Place& place, const float* bias, const Token& query, float* scores) {
    const long size = shape.size, all_tokens = size * size;
    const long bottom = place.top + place.rows - 1, right = place.left + place.columns - 1;
    if (bias) {
        const float* of_query = bias + (place.head * all_tokens + query.row * size + query.column) * all_tokens;
        for (long a = 0; a < place.rows; ++a)
            for (long b = 0; b < place.columns; ++b) scores[a * place.columns + b] += of_query[a * size + b];
    }
    if (!shape.shift || (bottom < shape.height - shape.shift && right < shape.width - shape.shift)) return;
    const long own = place.part(shape, query.row, query.column);
    for (long a = 0; a < place.rows; ++a)
        for (long b = 0; b < place.columns; ++b)
            if (place.part(shape, a, b) != own) scores[a * place.columns + b] = -__builtin_inff();
}

template <typename Number, typename T>
void attend_in_window(const Shape& shape, const Place& place, const T* qk, const T* v, const float* bias,
                      const T* pooled, const T* gate, T* out, Head<Number>& head) {
    const long channels = shape.heads * shape.depth, tokens = place.rows * place.columns;
    Token key = {place.columns}, query = key, biased = key, mixed = key;
    for (long i = 0; i < tokens; ++i, key.next())
        head.take(i, qk + place.in_map(shape, shape.qk, key) + channels, v + place.in_map(shape, shape.v, key));
    head.arrange(tokens);
    const T* const mean = pooled ? pooled + (place.image * shape.heads + place.head) * shape.depth : nullptr;
    for (long first = 0; first < tokens; first += kQueries) {
        const long queries = std::min(kQueries, tokens - first);
        for (long i = 0; i < queries; ++i, query.next())
            head.take_query(i, qk + place.in_map(shape, shape.qk, query));
        head.score(queries);
        if (bias || shape.shift)
            for (long i = 0; i < queries; ++i, biased.next())
                add_bias(shape, place, bias, biased, head.scores + i * head.width());
        head.mix(queries);
        for (long i = 0; i < queries; ++i, mixed.next()) {
            T* const result = out + place.in_map(shape, shape.out, mixed);
            const long factors = place.in_map(shape, shape.gate, mixed);
            for (long c = 0; c < shape.depth; c += kBlock) {
                const long numbers = std::min(kBlock, shape.depth - c);
                Vec value = load_some(result + c, numbers) + head.mixed(i, c);
                if (mean) value += load_some(mean + c, numbers);
                if (gate) value *= activated(load_some(gate + factors + c, numbers), shape.activation);
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
        const long floats = Head<Number>::floats(shape.depth, shape.most_tokens());
        Head<Number> head(shape.depth, shape.most_tokens(), memory + omp_get_thread_num() * floats);
#pragma omp for schedule(static)
        for (long piece = 0; piece < pieces; ++piece) {
            if (piece + 1 < pieces) prefetch(shape, Place(shape, piece + 1), qk, v, gate, out);
            attend_in_window(shape, Place(shape, piece), qk, v, bias, pooled, gate, out, head);
        }
    }
}

}  // namespace

// The number of floats of scratch memory for all threads.
extern "C" long sema_scratch_floats(const Shape* shape) {
    return shape->threads * Head<float>::floats(shape->depth, shape->most_tokens());
}

extern "C" void sema_attend_float32(const Shape* shape, const float* qk, const float* v, const float* bias,
                                    const float* pooled, const float* gate, float* out, float* scratch) {
    attend<float>(*shape, qk, v, bias, pooled, gate, out, scratch);
}

extern "C" void sema_attend_bfloat16(const Shape* shape, const BFloat16* qk, const BFloat16* v, const float* bias,
                                     const BFloat16* pooled, const BFloat16* gate, BFloat16* out, float* scratch) {
    attend<float>(*shape, qk, v, bias, pooled, gate, out, scratch);
}

#ifdef __AVX512BF16__
// Multiplies pairs; the depth must be even.
extern "C" void sema_attend_pairs(const Shape* shape, const BFloat16* qk, const BFloat16* v, const float* bias,
                                  const BFloat16* pooled, const BFloat16* gate, BFloat16* out, float* scratch) {
    attend<Pair>(*shape, qk, v, bias, pooled, gate, out, scratch);
}
#endif
