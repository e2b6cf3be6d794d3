// Batch norm and layer norm with their gradients.
//
// Statistics are accurate also where |mean| >> std. Values are shifted by the first one of their
// channel (row), so the float sums hold deviations, not the mean. Batch norm takes the mean and
// then the squared deviations from it per block of a few KB, so x comes from memory once, and joins
// the blocks in float64 by sum (m2_b + n_b (mean_b - mean)^2). Source: Chan, Golub, LeVeque,
// "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979. Blocks depend
// on shape and strides alone, so results are the same for every number of threads.
#include "families.h"
#include "parallel.h"
#include "strided.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t grain = 1 << 14;  // elements for which a second thread pays
constexpr int max_pieces = 256;     // vectors of one channel, or of `lanes` channels, in a block
constexpr int max_operands = 4;
constexpr int64_t block_bytes = 1 << 14;  // of one operand: x and y of a block share the L1 cache

double root(double x) { return __builtin_sqrt(x); }

// ---- batch norm: the walk over (N, C, H, W) operands
//
// Every operand has strides of its own. Where neighbouring channels are neighbours in memory (NHWC
// order, and N x C matrices) the lanes of a vector are channels; else they run along a plane.
// Either way a *strip* is the channels of one vector (or one channel), a *piece* is one vector of a
// strip, and a *block* is a range of pieces, the same in every strip.

struct Walk {
    int operands = 0;
    bool across_channels = false;
    int64_t channels = 1;
    int64_t per_channel = 1;  // N * H * W
    int64_t size[3];          // pieces of a strip, outermost axis first
    int64_t stride[max_operands][3];
    int64_t lane_stride[max_operands];
    int64_t channel_stride[max_operands];
    int64_t run = 1;   // elements of a channel that the innermost axis covers
    int64_t step = 1;  // elements of a channel in a piece
    int64_t pieces = 0, block_pieces = 1, blocks = 0, strips = 0;
    bool from_memory = false;  // the operands are more than a few cores' own caches

    int64_t first_piece(int64_t block) const { return min64(block * block_pieces, pieces); }
    int64_t elements_before(int64_t piece) const
    {
        return piece / size[2] * run + piece % size[2] * step;
    }
    // Elements of each channel in a block.
    int64_t elements(int64_t block) const
    {
        return elements_before(first_piece(block + 1)) - elements_before(first_piece(block));
    }
};

// The axes N, H, W of every operand; a missing axis has size 1.
void read_axes(Walk& walk, const Array* const* arrays)
{
    const Array& shape = *arrays[0];
    constexpr int axis_of[3] = {0, 2, 3};
    walk.channels = shape.shape[1];
    for (int d = 0; d < 3; ++d) {
        bool present = axis_of[d] < shape.rank;
        walk.size[d] = present ? shape.shape[axis_of[d]] : 1;
        walk.per_channel *= walk.size[d];
        for (int o = 0; o < walk.operands; ++o)
            walk.stride[o][d] = present ? arrays[o]->strides[axis_of[d]] : 0;
    }
    for (int o = 0; o < walk.operands; ++o) walk.channel_stride[o] = arrays[o]->strides[1];
}

// Joins axis d with the axis outside it where one stride serves both in every operand. Size and
// strides then stand at axis d.
void join_with_outer(Walk& walk, int d)
{
    int64_t inner = walk.size[d], outer = walk.size[d - 1];
    bool joins = true;
    for (int o = 0; o < walk.operands && outer > 1 && inner > 1; ++o)
        joins = joins && walk.stride[o][d - 1] == walk.stride[o][d] * inner;
    if (!joins) return;
    for (int o = 0; o < walk.operands; ++o) {
        if (inner == 1) walk.stride[o][d] = walk.stride[o][d - 1];
        walk.stride[o][d - 1] = 0;
    }
    walk.size[d] = inner * outer;
    walk.size[d - 1] = 1;
}

// W with H, then with N; where H could not join W, it may still join N.
void join_axes(Walk& walk)
{
    join_with_outer(walk, 2);
    if (walk.size[1] != 1) {
        join_with_outer(walk, 1);
        return;
    }
    for (int o = 0; o < walk.operands; ++o) walk.stride[o][1] = walk.stride[o][0];
    walk.size[1] = walk.size[0];
    walk.size[0] = 1;
    join_with_outer(walk, 2);
}

template <class T>
int64_t operand_bytes(const Walk& walk)
{
    return walk.channels * walk.per_channel * int64_t{sizeof(T)};
}

template <class T>
void cut_into_pieces(Walk& walk)
{
    bool plane_is_dense = walk.stride[0][2] == 1 && walk.size[2] > 1;
    walk.across_channels = !plane_is_dense || (walk.channel_stride[0] == 1 && walk.channels > 1);
    walk.run = walk.size[2];
    if (walk.across_channels) {
        walk.strips = ceil_div(walk.channels, lanes<T>);
    } else {
        walk.strips = walk.channels;
        walk.step = lanes<T>;
        walk.size[2] = ceil_div(walk.size[2], lanes<T>);
    }
    for (int o = 0; o < walk.operands; ++o) {
        walk.lane_stride[o] = walk.across_channels ? walk.channel_stride[o] : walk.stride[o][2];
        if (!walk.across_channels) walk.stride[o][2] *= lanes<T>;
    }
    walk.pieces = walk.size[0] * walk.size[1] * walk.size[2];
    int64_t row_bytes = (walk.across_channels ? walk.channels : lanes<T>)*int64_t{sizeof(T)};
    walk.block_pieces = min64(max64(block_bytes / max64(row_bytes, 1), 16), max_pieces);
    walk.blocks = ceil_div(walk.pieces, walk.block_pieces);
    walk.from_memory = walk.operands * operand_bytes<T>(walk) > 4 * caches().second_bytes;
}

template <class T, int count>
Walk make_walk(const Array* const (&arrays)[count])
{
    static_assert(count <= max_operands);
    Walk walk;
    walk.operands = count;
    read_axes(walk, arrays);
    join_axes(walk);
    cut_into_pieces<T>(walk);
    return walk;
}

// Where the pieces of a block lie in each operand, counted from the strip's first channel.
struct Block {
    int64_t index = -1;
    int64_t count = 0;
    int64_t offset[max_operands][max_pieces];
    int64_t valid[max_pieces];  // lanes in use, where lanes run along a plane
    bool full = true;           // all of them, in every piece
};

void find_pieces(const Walk& walk, int64_t index, Block& block)
{
    int64_t piece = walk.first_piece(index);
    block.index = index;
    block.count = walk.first_piece(index + 1) - piece;
    block.full = walk.run % walk.step == 0;
    for (int64_t done = 0; done < block.count;) {
        int64_t k = piece % walk.size[2], row = piece / walk.size[2];
        int64_t n = min64(block.count - done, walk.size[2] - k);
        for (int o = 0; o < walk.operands; ++o) {
            const int64_t* stride = walk.stride[o];
            int64_t start =
                row / walk.size[1] * stride[0] + row % walk.size[1] * stride[1] + k * stride[2];
            int64_t* out = block.offset[o] + done;
            for (int64_t i = 0; i < n; ++i) out[i] = start + i * stride[2];
        }
        for (int64_t i = 0; i < n; ++i)
            block.valid[done + i] = min64(walk.step, walk.run - (k + i) * walk.step);
        done += n;
        piece += n;
    }
}

// The pieces of one strip in one block. `plain`: every vector is whole and dense in every operand.
template <class T, bool plain>
struct Strip {
    const Walk& walk;
    const Block& block;
    int64_t channel;   // the first one
    int64_t channels;  // 1 where lanes run along a plane
    bool streams;      // what is written goes past the caches

    Vec<T> load_piece(const T* data, int operand, int64_t i) const
    {
        const T* p = data + channel * walk.channel_stride[operand] + block.offset[operand][i];
        if constexpr (plain) return load(p);
        return load_lanes(p, walk.lane_stride[operand], lanes_in(i));
    }

    void store_piece(T* data, int operand, int64_t i, Vec<T> v) const
    {
        T* p = data + channel * walk.channel_stride[operand] + block.offset[operand][i];
        if constexpr (!plain)
            store_lanes(p, walk.lane_stride[operand], v, lanes_in(i));
        else if (streams)
            stream_store<T>(p, v);
        else
            store(p, v);
    }

    // Fetches a part of the next block, which the strips of this one share in the order of memory:
    // each reads a column of it, an order that no processor foresees. (Inlined always: gcc takes
    // what only prefetches for a function without effects, and leaves its calls out.)
    NEEDLE_INLINE void fetch_next(const T* data, int operand, int64_t i) const
    {
        const T* next = data + block.offset[operand][0] + block.count * walk.stride[operand][2];
        __builtin_prefetch(next + channel * block.count + i * lanes<T>, 0, 2);
    }

    int64_t lanes_in(int64_t i) const { return walk.across_channels ? channels : block.valid[i]; }

    // One value per channel, from and to a dense array.
    Vec<T> of_channels(const T* values) const
    {
        if (!walk.across_channels) return broadcast(values[channel]);
        return load_lanes(values + channel, 1, channels);
    }
    void set_channels(T* values, Vec<T> v) const { store_lanes(values + channel, 1, v, channels); }

    // The sum of term(piece) for each channel.
    template <class Term>
    Vec<T> sum(const Term& term) const
    {
        Vec<T> a{}, b{}, c{}, d{};
        int64_t i = 0;
        for (; i + 4 <= block.count; i += 4) {
            a += used(i, term(i));
            b += used(i + 1, term(i + 1));
            c += used(i + 2, term(i + 2));
            d += used(i + 3, term(i + 3));
        }
        for (; i < block.count; ++i) a += used(i, term(i));
        return joined((a + b) + (c + d));
    }

    // Lanes that belong to one channel, added up.
    Vec<T> joined(Vec<T> sums) const
    {
        return walk.across_channels ? sums : broadcast(sum_lanes<T>(sums));
    }

    Vec<T> used(int64_t i, Vec<T> v) const
    {
        if constexpr (plain) return v;
        return keep_first(v, lanes_in(i), T(0));
    }
};

// Whether an operand that is written is more than the caches keep, and every plain piece of it a
// line of a cache, or followed by the piece that completes the line.
template <class T>
bool strips_may_stream(const Walk& walk, int operand, const T* data)
{
    const int64_t* stride = walk.stride[operand];
    bool whole_lines = !walk.across_channels || NEEDLE_VECTOR_BYTES == 64;
    int64_t next_strip = walk.across_channels ? lanes<T> : walk.channel_stride[operand];
    bool aligned = rows_are_aligned(data, next_strip);
    for (int d = 0; d < 3; ++d) aligned = aligned && rows_are_aligned(data, stride[d]);
    return whole_lines && aligned && operand_bytes<T>(walk) >= beyond_caches;
}

// Calls body(strip) for every strip of every block, shared by the threads.
template <class T, class Body>
void for_each_strip(const Walk& walk, const Body& body, bool streams = false)
{
    bool dense = true;
    for (int o = 0; o < walk.operands; ++o) dense = dense && walk.lane_stride[o] == 1;
    int64_t strip_elements = walk.block_pieces * lanes<T>;
    parallel_for(walk.blocks * walk.strips, ceil_div(grain, strip_elements),
                 [&](int64_t begin, int64_t end) {
                     Block block;
                     for (int64_t task = begin; task < end; ++task) {
                         if (task / walk.strips != block.index)
                             find_pieces(walk, task / walk.strips, block);
                         int64_t channel =
                             task % walk.strips * (walk.across_channels ? lanes<T> : 1);
                         int64_t channels =
                             walk.across_channels ? min64(lanes<T>, walk.channels - channel) : 1;
                         bool whole = walk.across_channels ? channels == lanes<T> : block.full;
                         if (dense && whole)
                             body(Strip<T, true>{walk, block, channel, channels, streams});
                         else
                             body(Strip<T, false>{walk, block, channel, channels, streams});
                     }
                     if (streams) end_stream();
                 });
}

// ---- sums over blocks

constexpr int64_t group = 16;  // columns that are summed together, in float64

// Calls body(first, n) for groups of n <= 16 neighbouring columns, shared by the threads.
template <class Body>
void for_each_group(int64_t columns, int64_t blocks, const Body& body)
{
    int64_t groups = ceil_div(columns, group);
    parallel_for(groups, ceil_div(grain, group * max64(blocks, 1)),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t g = begin; g < end; ++g)
                         body(g * group, min64(group, columns - g * group));
                 });
}

// sums[j] = the sum over b of term(b, values[b, j]); values are blocks x columns.
template <class T, class Term>
void sum_blocks(const T* values, int64_t blocks, int64_t columns, int64_t n, double* sums,
                const Term& term)
{
    for (int64_t j = 0; j < group; ++j) sums[j] = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        const T* row = values + b * columns;
        if (n == group)
            for (int64_t j = 0; j < group; ++j) sums[j] += term(b, j, static_cast<double>(row[j]));
        else
            for (int64_t j = 0; j < n; ++j) sums[j] += term(b, j, static_cast<double>(row[j]));
    }
}

// ---- batch norm

// y = (x - center) * factor + offset, one of each for every channel.
template <class T>
struct Affine {
    T *center, *factor, *offset;
};

template <class T>
void apply(const Walk& walk, T* y, const T* x, const Affine<T>& affine, bool relu)
{
    const bool streams = strips_may_stream(walk, 1, y), fetches = walk.from_memory;
    auto write = [&, fetches, streams](const auto& strip) {
        Vec<T> center = strip.of_channels(affine.center), factor = strip.of_channels(affine.factor);
        Vec<T> offset = strip.of_channels(affine.offset);
        for (int64_t i = 0; i < strip.block.count; ++i) {
            if (fetches) strip.fetch_next(x, 0, i);
            if (fetches && !streams) strip.fetch_next(y, 1, i);
            Vec<T> v = (strip.load_piece(x, 0, i) - center) * factor + offset;
            if (relu) v = v < T(0) ? Vec<T>{} : v;  // NaN stays
            strip.store_piece(y, 1, i, v);
        }
    };
    for_each_strip<T>(walk, write, streams);
}

// The mean of x - shift and the squared deviations from it, of every block and channel.
template <class T>
void block_moments(const Walk& walk, const T* x, const T* shifts, T* means, T* squares)
{
    const bool fetches = walk.from_memory;
    for_each_strip<T>(walk, [&, fetches](const auto& strip) {
        int64_t index = strip.block.index;
        Vec<T> shift = strip.of_channels(shifts);
        Vec<T> mean = strip.sum([&](int64_t i) {
            if (fetches) strip.fetch_next(x, 0, i);
            return strip.load_piece(x, 0, i) - shift;
        }) / static_cast<T>(walk.elements(index));
        strip.set_channels(means + index * walk.channels, mean);
        strip.set_channels(squares + index * walk.channels, strip.sum([&](int64_t i) {
            Vec<T> deviation = (strip.load_piece(x, 0, i) - shift) - mean;
            return deviation * deviation;
        }));
    });
}

// Scratch memory of batch_norm and batch_norm_grad: two values per block and channel, four per
// channel.
template <class T>
struct BatchScratch {
    T *first, *second, *a, *b, *c, *d;

    BatchScratch(const Walk& walk, void* workspace)
    {
        first = static_cast<T*>(workspace);
        second = first + walk.blocks * walk.channels;
        a = second + walk.blocks * walk.channels;
        b = a + walk.channels;
        c = b + walk.channels;
        d = c + walk.channels;
    }
    static int64_t bytes(const Walk& walk)
    {
        return (2 * walk.blocks + 4) * walk.channels * static_cast<int64_t>(sizeof(T));
    }
};

// From the moments of the blocks: mean and var, and the affine map that normalises.
template <class T>
void finish_moments(const Walk& walk, const BatchScratch<T>& scratch, const Call& call)
{
    Line<T> mean = vector_of<T>(call.arrays[1]), var = vector_of<T>(call.arrays[2]),
            weight = vector_of<T>(call.arrays[4]), bias = vector_of<T>(call.arrays[5]);
    const T* shifts = scratch.d;
    double count = static_cast<double>(walk.per_channel), eps = call.scalars[0];
    for_each_group(walk.channels, walk.blocks, [&](int64_t first, int64_t n) {
        double means[group], squares[group], spread[group];
        auto elements = [&](int64_t b) { return static_cast<double>(walk.elements(b)); };
        sum_blocks(scratch.first + first, walk.blocks, walk.channels, n, means,
                   [&](int64_t b, int64_t, double value) { return elements(b) * value; });
        for (int64_t j = 0; j < n; ++j) means[j] /= count;
        sum_blocks(scratch.second + first, walk.blocks, walk.channels, n, squares,
                   [&](int64_t, int64_t, double value) { return value; });
        sum_blocks(scratch.first + first, walk.blocks, walk.channels, n, spread,
                   [&](int64_t b, int64_t j, double value) {
                       return elements(b) * (value - means[j]) * (value - means[j]);
                   });
        for (int64_t j = 0; j < n; ++j) {
            int64_t channel = first + j;
            double variance = (squares[j] + spread[j]) / count;
            double exact_mean = static_cast<double>(shifts[channel]) + means[j];
            double factor = static_cast<double>(weight[channel]) / root(variance + eps);
            T center = static_cast<T>(exact_mean);
            mean[channel] = center;
            var[channel] = static_cast<T>(variance);
            scratch.a[channel] = center;
            scratch.b[channel] = static_cast<T>(factor);
            // What rounding took from the mean is large where |mean| >> std.
            scratch.c[channel] =
                static_cast<T>(static_cast<double>(bias[channel]) -
                               (exact_mean - static_cast<double>(center)) * factor);
        }
    });
}

template <class T>
Walk forward_walk(const Call& call, int x)
{
    const Array* arrays[] = {&call.arrays[x], &call.arrays[0]};
    return make_walk<T>(arrays);
}

template <class T>
void batch_norm_of(const Call& call)
{
    Walk walk = forward_walk<T>(call, 3);
    BatchScratch<T> scratch(walk, call.workspace);
    const T* x = call.arrays[3].as<T>();
    for (int64_t c = 0; c < walk.channels && walk.pieces > 0; ++c)
        scratch.d[c] = x[c * walk.channel_stride[0]];
    block_moments(walk, x, scratch.d, scratch.first, scratch.second);
    finish_moments(walk, scratch, call);
    apply(walk, call.arrays[0].as<T>(), x, {scratch.a, scratch.b, scratch.c}, call.scalars[1] != 0);
}

void batch_norm(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) { batch_norm_of<decltype(zero)>(call); });
}

int64_t batch_norm_workspace(const Call& call)
{
    int64_t bytes = 0;
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        bytes = BatchScratch<T>::bytes(forward_walk<T>(call, 3));
    });
    return bytes;
}

template <class T>
void batch_norm_eval_of(const Call& call)
{
    Line<T> mean = vector_of<T>(call.arrays[2]), var = vector_of<T>(call.arrays[3]),
            weight = vector_of<T>(call.arrays[4]), bias = vector_of<T>(call.arrays[5]);
    Walk walk = forward_walk<T>(call, 1);
    T* center = static_cast<T*>(call.workspace);
    T *factor = center + walk.channels, *offset = factor + walk.channels;
    for (int64_t c = 0; c < walk.channels; ++c) {
        double variance = static_cast<double>(var[c]);
        center[c] = mean[c];
        factor[c] =
            static_cast<T>(static_cast<double>(weight[c]) / root(variance + call.scalars[0]));
        offset[c] = bias[c];
    }
    apply(walk, call.arrays[0].as<T>(), call.arrays[1].as<T>(), {center, factor, offset},
          call.scalars[1] != 0);
}

void batch_norm_eval(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) { batch_norm_eval_of<decltype(zero)>(call); });
}

int64_t batch_norm_eval_workspace(const Call& call)
{
    int64_t channels = call.arrays[2].shape[0];
    return 3 * channels * (call.arrays[0].dtype == DType::float32 ? 4 : 8);
}

// ---- batch norm: gradient
//
// With g = dy, or dy where y > 0 under relu, M values per channel, and d = x - mean:
//     dbias = sum(g)    dweight = sum(g d) / std
//     dx = weight / std * (g - dbias / M - d * dweight / (std M))

enum Role { role_x, role_dy, role_dx, role_y };

template <class T>
struct BatchGrad {
    const T *x, *dy, *y;  // y is null where there is no relu
    T* dx;

    template <class Strip>
    NEEDLE_INLINE void fetch_next(const Strip& strip, int64_t i) const
    {
        strip.fetch_next(x, role_x, i);
        strip.fetch_next(dy, role_dy, i);
    }

    template <class Strip>
    Vec<T> incoming(const Strip& strip, int64_t i) const
    {
        Vec<T> g = strip.load_piece(dy, role_dy, i);
        if (y == nullptr) return g;
        return strip.load_piece(y, role_y, i) > T(0) ? g : Vec<T>{};
    }
};

template <class T>
void block_gradient_sums(const Walk& walk, const BatchGrad<T>& grad, const BatchScratch<T>& scratch)
{
    const T* means = scratch.a;
    const bool fetches = walk.from_memory;
    for_each_strip<T>(walk, [&, fetches](const auto& strip) {
        int64_t row = strip.block.index * walk.channels;
        int64_t count = strip.block.count, i = 0;
        Vec<T> mean = strip.of_channels(means), sums[2] = {}, products[2] = {};
        auto add = [&](int k, int64_t i) {
            if (fetches) grad.fetch_next(strip, i);
            Vec<T> g = strip.used(i, grad.incoming(strip, i));
            sums[k] += g;
            products[k] += g * (strip.load_piece(grad.x, role_x, i) - mean);
        };
        for (; i + 2 <= count; i += 2) {
            add(0, i);
            add(1, i + 1);
        }
        if (i < count) add(0, i);
        strip.set_channels(scratch.first + row, strip.joined(sums[0] + sums[1]));
        strip.set_channels(scratch.second + row, strip.joined(products[0] + products[1]));
    });
}

// dweight and dbias, and dx = g * b + (x - mean) * c + d for the pass that follows.
template <class T>
void finish_gradient_sums(const Walk& walk, const BatchScratch<T>& scratch, const Call& call)
{
    Line<T> dweight = vector_of<T>(call.arrays[1]), dbias = vector_of<T>(call.arrays[2]),
            var = vector_of<T>(call.arrays[7]), weight = vector_of<T>(call.arrays[8]);
    double count = static_cast<double>(walk.per_channel), eps = call.scalars[0];
    auto plain = [](int64_t, int64_t, double value) { return value; };
    for_each_group(walk.channels, walk.blocks, [&](int64_t first, int64_t n) {
        double sums[group], products[group];
        sum_blocks(scratch.first + first, walk.blocks, walk.channels, n, sums, plain);
        sum_blocks(scratch.second + first, walk.blocks, walk.channels, n, products, plain);
        for (int64_t j = 0; j < n; ++j) {
            int64_t channel = first + j;
            double inverse = 1 / root(static_cast<double>(var[channel]) + eps);
            double factor = static_cast<double>(weight[channel]) * inverse;
            dbias[channel] = static_cast<T>(sums[j]);
            dweight[channel] = static_cast<T>(products[j] * inverse);
            scratch.b[channel] = static_cast<T>(factor);
            scratch.c[channel] = static_cast<T>(-factor * products[j] * inverse * inverse / count);
            scratch.d[channel] = static_cast<T>(-factor * sums[j] / count);
        }
    });
}

template <class T>
void write_input_gradient(const Walk& walk, const BatchGrad<T>& grad,
                          const BatchScratch<T>& scratch)
{
    const bool streams = strips_may_stream(walk, role_dx, grad.dx), fetches = walk.from_memory;
    auto write = [&, fetches, streams](const auto& strip) {
        Vec<T> mean = strip.of_channels(scratch.a), b = strip.of_channels(scratch.b);
        Vec<T> c = strip.of_channels(scratch.c), d = strip.of_channels(scratch.d);
        for (int64_t i = 0; i < strip.block.count; ++i) {
            if (fetches) grad.fetch_next(strip, i);
            if (fetches && !streams) strip.fetch_next(grad.dx, role_dx, i);
            Vec<T> g = grad.incoming(strip, i);
            Vec<T> deviation = strip.load_piece(grad.x, role_x, i) - mean;
            strip.store_piece(grad.dx, role_dx, i, g * b + (deviation * c + d));
        }
    };
    for_each_strip<T>(walk, write, streams);
}

bool has_relu(const Call& call) { return call.scalars[1] != 0 && call.arrays[5].data != nullptr; }

template <class T>
Walk backward_walk(const Call& call)
{
    const Array &dx = call.arrays[0], &dy = call.arrays[3], &x = call.arrays[4];
    const Array* arrays[] = {&x, &dy, &dx, has_relu(call) ? &call.arrays[5] : &x};
    return make_walk<T>(arrays);
}

template <class T>
void batch_norm_grad_of(const Call& call)
{
    Line<T> mean = vector_of<T>(call.arrays[6]);
    Walk walk = backward_walk<T>(call);
    BatchScratch<T> scratch(walk, call.workspace);
    BatchGrad<T> grad{call.arrays[4].as<T>(), call.arrays[3].as<T>(),
                      has_relu(call) ? call.arrays[5].as<T>() : nullptr, call.arrays[0].as<T>()};
    for (int64_t c = 0; c < walk.channels; ++c) scratch.a[c] = mean[c];
    block_gradient_sums(walk, grad, scratch);
    finish_gradient_sums(walk, scratch, call);
    write_input_gradient(walk, grad, scratch);
}

void batch_norm_grad(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) { batch_norm_grad_of<decltype(zero)>(call); });
}

int64_t batch_norm_grad_workspace(const Call& call)
{
    int64_t bytes = 0;
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        bytes = BatchScratch<T>::bytes(backward_walk<T>(call));
    });
    return bytes;
}

// ---- layer norm

// Whether the last axis of all these operands is dense.
bool rows_are_dense(const Call& call, const int (&operands)[4])
{
    for (int i : operands)
        if (call.arrays[i].strides[call.arrays[i].rank - 1] != 1) return false;
    return true;
}

// A vector of a row, past the caches where `streams` and it is a whole one.
template <class T>
void store_or_stream(const Line<T>& row, int64_t i, int64_t n, Vec<T> v, bool streams)
{
    if (streams && n == lanes<T>)
        stream_store<T>(row.data + i, v);
    else
        row.store(i, n, v);
}

template <class T, bool dense>
void layer_norm_row(const Call& call, int64_t r, bool streams)
{
    Line<T> y = known<dense>(row_of<T>(call.arrays[0], r));
    Line<T> x = known<dense>(row_of<T>(call.arrays[3], r));
    Line<T> weight = known<dense>(vector_of<T>(call.arrays[4]));
    Line<T> bias = known<dense>(vector_of<T>(call.arrays[5]));
    Line<T> mean = vector_of<T>(call.arrays[1]), var = vector_of<T>(call.arrays[2]);
    int64_t size = call.arrays[3].shape[1];
    double count = static_cast<double>(size);
    T shift = size > 0 ? x[0] : T(0);
    double average =
        sum_along<T>(size, [&](int64_t i, int64_t n) { return x.load(i, n) - shift; }) / count;
    T rounded = static_cast<T>(average);
    double variance = sum_along<T>(size,
                                   [&](int64_t i, int64_t n) {
                                       Vec<T> deviation = (x.load(i, n) - shift) - rounded;
                                       return deviation * deviation;
                                   }) /
                      count;
    double exact_mean = static_cast<double>(shift) + average;
    double factor = 1 / root(variance + call.scalars[0]);
    T center = static_cast<T>(exact_mean), scale = static_cast<T>(factor);
    // What rounding took from the mean is large where |mean| >> std.
    T offset = static_cast<T>((static_cast<double>(center) - exact_mean) * factor);
    mean[r] = center;
    var[r] = static_cast<T>(variance);
    for_vectors<T>(size, [&](int64_t i, int64_t n) {
        Vec<T> normal = (x.load(i, n) - center) * scale + offset;
        store_or_stream(y, i, n, normal * weight.load(i, n) + bias.load(i, n), streams);
    });
}

void layer_norm(const Call& call)
{
    const Array& x = call.arrays[3];
    bool dense = rows_are_dense(call, {0, 3, 4, 5});
    parallel_for(x.shape[0], ceil_div(grain, max64(x.shape[1], 1)),
                 [&](int64_t begin, int64_t end) {
                     with_float(x.dtype, [&](auto zero) {
                         using T = decltype(zero);
                         bool streams = dense && may_stream<T>(call.arrays[0]);
                         auto row = dense ? layer_norm_row<T, true> : layer_norm_row<T, false>;
                         for (int64_t r = begin; r < end; ++r) row(call, r, streams);
                         if (streams) end_stream();
                     });
                 });
}

// With g = dy weight, d = x - mean, D elements in a row:
//     dbias = sum of dy over rows    dweight = sum of dy d / std over rows
//     dx = (g - mean(g) - d mean(g d) / var) / std, where var includes eps

int64_t rows_in_block(int64_t rows) { return min64(max64(ceil_div(rows, 16), 4), 64); }

// One row: dx, and what it adds to dweight and dbias.
template <class T, bool dense>
void layer_norm_grad_row(const Call& call, int64_t r, Line<T> dweights, Line<T> dbiases,
                         bool streams)
{
    Line<T> dweight = known<true>(dweights), dbias = known<true>(dbiases);
    Line<T> dx = known<dense>(row_of<T>(call.arrays[0], r));
    Line<T> dy = known<dense>(row_of<T>(call.arrays[3], r));
    Line<T> x = known<dense>(row_of<T>(call.arrays[4], r));
    Line<T> weight = known<dense>(vector_of<T>(call.arrays[7]));
    int64_t size = call.arrays[4].shape[1];
    T center = vector_of<T>(call.arrays[5])[r];
    double variance = static_cast<double>(vector_of<T>(call.arrays[6])[r]) + call.scalars[0];
    T inverse = static_cast<T>(1 / root(variance));
    Vec<T> sum{}, product{};  // of g and of g d / std; lanes beyond the row hold dy = 0
    for_vectors<T>(size, [&](int64_t i, int64_t n) {
        Vec<T> incoming = dy.load(i, n), normal = (x.load(i, n) - center) * inverse;
        Vec<T> g = incoming * weight.load(i, n);
        dbias.store(i, n, dbias.load(i, n) + incoming);
        dweight.store(i, n, dweight.load(i, n) + incoming * normal);
        sum += g;
        product += g * normal;
    });
    T mean_g = sum_lanes<T>(sum) / static_cast<T>(size);
    T mean_gx = sum_lanes<T>(product) / static_cast<T>(size);
    for_vectors<T>(size, [&](int64_t i, int64_t n) {
        Vec<T> normal = (x.load(i, n) - center) * inverse;
        Vec<T> g = dy.load(i, n) * weight.load(i, n);
        store_or_stream(dx, i, n, ((g - mean_g) - normal * mean_gx) * inverse, streams);
    });
}

template <class T>
void layer_norm_grad_of(const Call& call)
{
    Line<T> dweight = vector_of<T>(call.arrays[1]), dbias = vector_of<T>(call.arrays[2]);
    const Array& x = call.arrays[4];
    int64_t rows = x.shape[0], size = x.shape[1], per_block = rows_in_block(rows);
    int64_t blocks = ceil_div(rows, per_block);
    T* weights = static_cast<T*>(call.workspace);  // blocks x size, and then the same for dbias
    T* biases = weights + blocks * size;
    const bool dense = rows_are_dense(call, {0, 3, 4, 7});
    const bool streams = dense && may_stream<T>(call.arrays[0]);
    auto run_row = dense ? layer_norm_grad_row<T, true> : layer_norm_grad_row<T, false>;
    parallel_for(
        blocks, ceil_div(grain, per_block * max64(size, 1)), [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                for (int64_t i = 0; i < size; ++i) weights[b * size + i] = biases[b * size + i] = 0;
                for (int64_t r = b * per_block; r < min64(rows, (b + 1) * per_block); ++r)
                    run_row(call, r, {weights + b * size, 1}, {biases + b * size, 1}, streams);
            }
            if (streams) end_stream();
        });
    auto plain = [](int64_t, int64_t, double value) { return value; };
    for_each_group(size, blocks, [&](int64_t first, int64_t n) {
        double sums[group];
        sum_blocks(weights + first, blocks, size, n, sums, plain);
        for (int64_t j = 0; j < n; ++j) dweight[first + j] = static_cast<T>(sums[j]);
        sum_blocks(biases + first, blocks, size, n, sums, plain);
        for (int64_t j = 0; j < n; ++j) dbias[first + j] = static_cast<T>(sums[j]);
    });
}

void layer_norm_grad(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) { layer_norm_grad_of<decltype(zero)>(call); });
}

int64_t layer_norm_grad_workspace(const Call& call)
{
    const Array& x = call.arrays[4];
    int64_t blocks = ceil_div(x.shape[0], rows_in_block(x.shape[0]));
    return 2 * blocks * x.shape[1] * (x.dtype == DType::float32 ? 4 : 8);
}

}  // namespace

void add_normalize(Table& table)
{
    table[Kernel::batch_norm] = {batch_norm, batch_norm_workspace};
    table[Kernel::batch_norm_eval] = {batch_norm_eval, batch_norm_eval_workspace};
    table[Kernel::batch_norm_grad] = {batch_norm_grad, batch_norm_grad_workspace};
    table[Kernel::layer_norm].run = layer_norm;
    table[Kernel::layer_norm_grad] = {layer_norm_grad, layer_norm_grad_workspace};
}

}  // namespace needle::NEEDLE_TARGET
