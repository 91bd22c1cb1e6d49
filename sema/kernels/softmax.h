// Softmax attention of one head in one thread, for a block of queries at a time.
//
// Keys are laid out channel by channel and values token by token, in blocks that fill whole vector registers. Products
// and sums are float32, whatever the tensors hold. With Pairs, two neighbouring channels of queries and keys form a
// pair, and two tokens of weights and values; the weights are then rounded to bfloat16.

#pragma once

#include <algorithm>

#include "products.h"

namespace {

// Queries at once, whole rows of products, and keys whose values are added at once.
constexpr long kQueries = 10 * kRows, kKeys = 128;

// Number: float or Pair.
template <typename Number>
class Head {
  public:
    float* scores;  // row i: those of query i; rows are `width()` apart

    // `memory` holds `floats(depth, most_keys)` numbers.
    Head(long depth, long most_keys, float* memory) : depth_(depth), deep_(round_up(depth, kBlock)) {
        const long wide = round_up(most_keys, kBlock);
        queries_ = reinterpret_cast<Number*>(memory);
        sums_ = memory + kQueries * deep_;
        keys_ = reinterpret_cast<Number*>(sums_ + kQueries * deep_);
        values_ = keys_ + deep_ * wide;
        scores = reinterpret_cast<float*>(values_ + wide * deep_);
        factors_ = scores + wide * std::max(kQueries, deep_);
    }
    static long floats(long depth, long most_keys) {
        const long deep = round_up(depth, kBlock), wide = round_up(most_keys, kBlock);
        return 2 * kQueries * deep + 2 * deep * wide + wide * std::max(kQueries, deep) + round_up(kQueries, 16);
    }

    long width() const { return round_up(keys_count_, kBlock); }

    // Take all keys with their values, one after the other, then `arrange` them. The scores are lost.
    template <typename T>
    void take(long token, const T* key, const T* value) {
        copy_row(key, depth_, key_rows() + token * deep_);
        copy_token(value, depth_, token, values_ + token / kEach * deep_);
    }
    void arrange(long keys) {
        keys_count_ = keys;
        transpose(key_rows(), deep_, keys, depth_ / kEach, keys_, width());
    }

    template <typename T>
    void take_query(long row, const T* query) {
        copy_row(query, depth_, queries_ + row * deep_);
    }
    // Compute the scores of queries.
    void score(long queries) {
        matmul({queries_, deep_, 1}, keys_, width(), scores, width(), queries, depth_ / kEach, width() / kBlock);
    }
    // Sum the values, weighted by the softmax of the scores.
    void mix(long queries) {
        const long wide = width();
        for (long i = 0; i < queries; ++i) {
            factors_[i] = 1.0f / soften(scores + i * wide, keys_count_, wide / kBlock);
            pack(scores + i * wide, wide / kBlock, queries_);
        }
        const Number* const weights = reinterpret_cast<Number*>(scores);
        for (long first = 0; first < keys_count_; first += kKeys) {
            const long keys = std::min(kKeys, keys_count_ - first);
            matmul({weights + first / kEach, wide, 1}, values_ + first / kEach * deep_, deep_, sums_, deep_, queries,
                   round_up(keys, kEach) / kEach, deep_ / kBlock, first > 0);
        }
    }
    // The result of a query, from channel c on.
    Vec mixed(long row, long c) const { return load_block(sums_ + row * deep_ + c) * factors_[row]; }

  private:
    static constexpr long kEach = numbers_in<Number>;
    long depth_, deep_, keys_count_ = 0;
    Number *queries_, *keys_, *values_;
    float *sums_, *factors_;

    Number* key_rows() const { return reinterpret_cast<Number*>(scores); }
};

}  // namespace
