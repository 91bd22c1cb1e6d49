// Softmax attention of all tokens: out = softmax(q kᵀ) v. There may be more or fewer keys than queries.
//
// The heads of all images lie one after another; each thread computes an equal share of their queries.

#include <omp.h>

#include "softmax.h"

namespace {

struct Shape {
    long images, queries, keys, heads, depth, threads;
    Strides q, k, v;
};

// Load the keys and values of a head, and attend to them from the queries `first` to `end`. `at`: its first channel.
template <typename Number, typename T>
void attend_in_head(const Shape& shape, long image, long at, long first, long end, const T* q, const T* k, const T* v,
                    T* out, Head<Number>& head) {
    const long channels = shape.heads * shape.depth;
    for (long n = 0; n < shape.keys; ++n)
        head.take(n, k + image * shape.k.image + n * shape.k.token + at,
                  v + image * shape.v.image + n * shape.v.token + at);
    head.arrange(shape.keys);
    for (; first < end; first += kQueries) {
        const long rows = std::min(kQueries, end - first);
        for (long i = 0; i < rows; ++i)
            head.take_query(i, q + image * shape.q.image + (first + i) * shape.q.token + at);
        head.score(rows);
        head.mix(rows);
        for (long i = 0; i < rows; ++i) {
            T* const result = out + (image * shape.queries + first + i) * channels + at;
            for (long c = 0; c < shape.depth; c += kBlock)
                store_some(result + c, head.mixed(i, c), std::min(kBlock, shape.depth - c));
        }
    }
}

template <typename Number, typename T>
void attend(const Shape& shape, const T* q, const T* k, const T* v, T* out, float* memory) {
    const long blocks = round_up(shape.queries, kRows) / kRows;  // of the queries of a head
    const long all_blocks = shape.images * shape.heads * blocks;
#pragma omp parallel num_threads(shape.threads)
    {
        const long thread = omp_get_thread_num(), threads = omp_get_num_threads();
        Head<Number> head(shape.depth, shape.keys, memory + thread * Head<Number>::floats(shape.depth, shape.keys));
        const long last = all_blocks * (thread + 1) / threads;
        for (long block = all_blocks * thread / threads; block < last;) {
            const long piece = block / blocks, first = block % blocks;  // one head of one image
            const long count = std::min(blocks - first, last - block);
            attend_in_head(shape, piece / shape.heads, piece % shape.heads * shape.depth, first * kRows,
                           std::min((first + count) * kRows, shape.queries), q, k, v, out, head);
            block += count;
        }
    }
}

}  // namespace

// The number of floats of scratch memory for all threads.
extern "C" long sema_softmax_scratch_floats(const Shape* shape) {
    return shape->threads * Head<float>::floats(shape->depth, shape->keys);
}

extern "C" void sema_softmax_float32(const Shape* shape, const float* q, const float* k, const float* v, float* out,
                                     float* scratch) {
    attend<float>(*shape, q, k, v, out, scratch);
}

extern "C" void sema_softmax_bfloat16(const Shape* shape, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                                      BFloat16* out, float* scratch) {
    attend<float>(*shape, q, k, v, out, scratch);
}

#ifdef __AVX512BF16__
// Multiplies pairs; the depth must be even.
extern "C" void sema_softmax_pairs(const Shape* shape, const BFloat16* q, const BFloat16* k, const BFloat16* v,
                                   BFloat16* out, float* scratch) {
    attend<Pair>(*shape, q, k, v, out, scratch);
}
#endif
