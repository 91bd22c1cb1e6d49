// Depthwise convolution of maps (B, H, W, C) with bias, activation and residual in one pass; zeros outside the map.
//
// A tile is a few columns of one or two rows, with as many channels as fill one vector register. Each loaded number is
// used for all outputs of the tile that need it. Sums are float32, whatever the maps hold.

#include <algorithm>

#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr long kColumns = 8, kRegisters = 32;
#else
constexpr long kColumns = 4, kRegisters = 16;
#endif
// A piece of work: this many rows of this many blocks of channels.
constexpr long kPieceRows = 8, kPieceBlocks = 4;

struct Shape {
    long images, height, width, channels, size, activation, threads;
    long image_stride, token_stride;  // from one image, and one token, of the input to the next
    long weight_stride;               // from the weights of one image to the next; 0 if all share them
};

template <typename T>
struct Maps {
    const T* x;
    const T* add;  // may be null
    T* out;
};

// `Inner`: the tile reads no column outside the map.
template <int Size, int Rows, bool Inner, typename T>
inline void convolve_tile(const Shape& shape, const Maps<T>& maps, const float* weight, const float* bias, long row,
                          long column, long channel) {
    constexpr long kPad = Size / 2, kSeen = kColumns + Size - 1;
    Vec sums[Rows][kColumns];
    const Vec sum = load_block(bias + channel);
    for (long r = 0; r < Rows; ++r)
        for (long i = 0; i < kColumns; ++i) sums[r][i] = sum;
    for (long line = 0; line < Rows + Size - 1; ++line) {
        const long y = row + line - kPad;
        if (y < 0 || y >= shape.height) continue;
        const T* const start_of_line = maps.x + y * shape.width * shape.token_stride + channel;
        Vec seen[kSeen];
        for (long i = 0; i < kSeen; ++i) {
            const long at = column - kPad + i;
            const bool inside = Inner || (at >= 0 && at < shape.width);
            seen[i] = inside ? load_block(start_of_line + at * shape.token_stride) : Vec{};
        }
        for (long r = 0; r < Rows; ++r) {
            const long down = line - r;
            if (down < 0 || down >= Size) continue;
            for (long across = 0; across < Size; ++across) {
                const Vec factor = load_block(weight + (down * Size + across) * shape.channels + channel);
                for (long i = 0; i < kColumns; ++i) sums[r][i] += factor * seen[i + across];
            }
        }
    }
    const long columns = Inner ? kColumns : std::min(kColumns, shape.width - column);
    for (long r = 0; r < Rows; ++r) {
        const long at = ((row + r) * shape.width + column) * shape.channels + channel;
        for (long i = 0; i < columns; ++i) {
            Vec y = activated(sums[r][i], shape.activation);
            if (maps.add) y += load_block(maps.add + at + i * shape.channels);
            store_block(maps.out + at + i * shape.channels, y);
        }
    }
}

template <int Size, int Rows, typename T>
inline void convolve_rows(const Shape& shape, const Maps<T>& maps, const float* weight, const float* bias, long row,
                          long channel) {
    for (long column = 0; column < shape.width; column += kColumns) {
        const bool inner = column >= Size / 2 && column + kColumns + Size / 2 <= shape.width;
        auto* const tile = inner ? convolve_tile<Size, Rows, true, T> : convolve_tile<Size, Rows, false, T>;
        tile(shape, maps, weight, bias, row, column, channel);
    }
}

template <int Size, typename T>
void convolve_maps(const Shape& shape, const Maps<T>& maps, const float* weight, const float* bias) {
    // Two rows at once, if their sums and inputs fit in registers.
    constexpr int kRows = 2 * kColumns + kColumns + Size - 1 < kRegisters ? 2 : 1;
    const long strips = (shape.height + kPieceRows - 1) / kPieceRows;
    const long blocks = shape.channels / kBlock, groups = (blocks + kPieceBlocks - 1) / kPieceBlocks;
#pragma omp parallel for num_threads(shape.threads) schedule(static)
    for (long piece = 0; piece < shape.images * strips * groups; ++piece) {
        const long group = piece % groups, strip = piece / groups % strips;
        const long image = piece / groups / strips, at = image * shape.height * shape.width * shape.channels;
        const Maps<T> parts = {maps.x + image * shape.image_stride, maps.add ? maps.add + at : nullptr, maps.out + at};
        const long bottom = std::min((strip + 1) * kPieceRows, shape.height);
        const long last = std::min((group + 1) * kPieceBlocks, blocks) * kBlock;
        for (long row = strip * kPieceRows; row < bottom; row += kRows) {
            auto* const rows = row + kRows <= bottom ? convolve_rows<Size, kRows, T> : convolve_rows<Size, 1, T>;
            for (long channel = group * kPieceBlocks * kBlock; channel < last; channel += kBlock)
                rows(shape, parts, weight + image * shape.weight_stride, bias, row, channel);
        }
    }
}

template <typename T>
void convolve(const Shape& shape, const Maps<T>& maps, const float* weight, const float* bias) {
    if (shape.size == 3) convolve_maps<3>(shape, maps, weight, bias);
    if (shape.size == 5) convolve_maps<5>(shape, maps, weight, bias);
    if (shape.size == 7) convolve_maps<7>(shape, maps, weight, bias);
}

}  // namespace

extern "C" void sema_depthwise_float32(const Shape* shape, const float* x, const float* weight, const float* bias,
                                       const float* add, float* out) {
    convolve<float>(*shape, {x, add, out}, weight, bias);
}

extern "C" void sema_depthwise_bfloat16(const Shape* shape, const BFloat16* x, const float* weight, const float* bias,
                                        const BFloat16* add, BFloat16* out) {
    convolve<BFloat16>(*shape, {x, add, out}, weight, bias);
}
