// image_batch: rows of a data set of images as one batch of floats, each image shifted, mirrored,
// a square of it cut out, its values scaled, in one pass: every pixel is read and written once.
// Images and batch are (N, C, H, W); a vector holds neighbouring pixels of a row.
#include "families.h"
#include "parallel.h"
#include "simd.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t grain = 1 << 14;  // pixels written for which a second thread pays

inline Vec<float> load_floats(const float* p) { return load(p); }

inline Vec<float> load_floats(const uint8_t* p) { return load_bytes(p); }

inline Vec<float> reversed(Vec<float> v)
{
    Vec<float> r;
    for (int i = 0; i < lanes<float>; ++i) r[i] = v[lanes<float> - 1 - i];
    return r;
}

// A true division, not a product with 1 / divisor: a byte / 255 is the float that was a file's
// pixel before it became a byte.
struct Scale {
    float divisor = 1, offset = -0.0f;  // adding 0 would make a positive 0 of a negative one

    template <class X>
    X operator()(X x) const
    {
        return x / divisor + offset;
    }
};

// out[j] = scale(in[j * step]) for n pixels side by side in `out`.
template <class T>
void scale_run(float* out, const T* in, int64_t step, int64_t n, Scale scale)
{
    constexpr int64_t width = lanes<float>;
    if (n < width || (step != 1 && step != -1)) {
        for (int64_t j = 0; j < n; ++j) out[j] = scale(static_cast<float>(in[j * step]));
        return;
    }
    // The last vector ends with the last pixel: it may write some again, with the same values.
    for (int64_t next = 0; next < n; next += width) {
        int64_t j = min64(next, n - width);
        Vec<float> v = step == 1 ? load_floats(in + j) : reversed(load_floats(in - j - width + 1));
        store(out + j, scale(v));
    }
}

void fill_run(float* out, int64_t n, float value)
{
    for (int64_t j = 0; j < n; ++j) out[j] = value;
}

// Place k of an axis of n pixels, mirrored at the first or the last one where it lies outside.
int64_t reflected(int64_t k, int64_t n) { return k < 0 ? -k : k >= n ? 2 * (n - 1) - k : k; }

struct Pair {
    int64_t y, x;
};

int64_t between(int64_t low, int64_t x, int64_t high) { return max64(low, min64(x, high)); }

struct Batch {
    const Array &out, &data, &ids, &shifts, &mirrored, &corners, &divisor, &offset;
    bool reflect;
    int64_t cut, channels, height, width;

    explicit Batch(const Call& call)
        : out(call.arrays[0]),
          data(call.arrays[1]),
          ids(call.arrays[2]),
          shifts(call.arrays[3]),
          mirrored(call.arrays[4]),
          corners(call.arrays[5]),
          divisor(call.arrays[6]),
          offset(call.arrays[7]),
          reflect(call.scalars[0] != 0),
          cut(static_cast<int64_t>(call.scalars[1])),
          channels(out.shape[1]),
          height(out.shape[2]),
          width(out.shape[3])
    {
    }

    template <class T>
    const T* source(int64_t n) const
    {
        return data.as<T>() + ids.as<int64_t>()[n * ids.strides[0]] * data.strides[0];
    }

    // By how much image n moves. No farther than out of sight: all shifts beyond are the same.
    Pair shift(int64_t n) const
    {
        Pair moved = row_of_pairs(shifts, n);
        return {between(-height, moved.y, height), between(-width, moved.x, width)};
    }

    Pair corner(int64_t n) const { return row_of_pairs(corners, n); }

    bool is_mirrored(int64_t n) const
    {
        return mirrored.data != nullptr && mirrored.as<bool>()[n * mirrored.strides[0]];
    }

    Scale scale(int64_t c) const
    {
        Scale scale;
        if (divisor.data != nullptr) scale.divisor = divisor.as<float>()[c * divisor.strides[0]];
        if (offset.data != nullptr) scale.offset = offset.as<float>()[c * offset.strides[0]];
        return scale;
    }

private:
    static Pair row_of_pairs(const Array& pairs, int64_t n)
    {
        if (pairs.data == nullptr) return {0, 0};
        const int64_t* row = pairs.as<int64_t>() + n * pairs.strides[0];
        return {row[0], row[pairs.strides[1]]};
    }
};

// How the columns of one image come from those of its source: output j reads column(j), and those
// of [begin, end) lie inside.
struct Columns {
    int64_t width, shift, begin, end;
    bool mirrored;

    Columns(int64_t width, int64_t dx, bool mirrored)
        : width(width),
          shift(dx),
          begin(max64(0, -dx)),
          end(min64(width, width - dx)),
          mirrored(mirrored)
    {
        if (!mirrored) return;
        int64_t from_the_right = width - end;
        end = width - begin;
        begin = from_the_right;
    }

    int64_t column(int64_t j) const { return (mirrored ? width - 1 - j : j) + shift; }
};

// One row of pixels, `stride` apart; what lies beside the image counts as 0, or is reflected.
template <class T>
void write_row(float* out, const T* row, int64_t stride, const Columns& columns, Scale scale,
               bool reflect)
{
    auto beside = [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
            int64_t at = reflected(columns.column(j), columns.width) * stride;
            out[j] = scale(reflect ? static_cast<float>(row[at]) : 0.0f);
        }
    };
    beside(0, columns.begin);
    scale_run(out + columns.begin, row + columns.column(columns.begin) * stride,
              columns.mirrored ? -stride : stride, columns.end - columns.begin, scale);
    beside(columns.end, columns.width);
}

// Fetches the same row of the next image: no prefetcher guesses its id.
template <class T>
void fetch_row(const T* row, int64_t width)
{
    for (int64_t j = 0; j < width; j += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(row + j);
}

template <class T>
void write_image(const Batch& batch, int64_t n)
{
    int64_t height = batch.height, width = batch.width;
    const int64_t *from = batch.data.strides, *to = batch.out.strides;
    Pair shift = batch.shift(n), corner = batch.corner(n);
    Columns columns(width, shift.x, batch.is_mirrored(n));
    const T* source = batch.source<T>(n);
    const T* next = batch.source<T>(min64(n + 1, batch.out.shape[0] - 1));
    for (int64_t c = 0; c < batch.channels; ++c) {
        const T* image = source + c * from[1];
        float* out = batch.out.as<float>() + n * to[0] + c * to[1];
        Scale scale = batch.scale(c);
        float nothing = scale(0.0f);
        for (int64_t i = 0; i < height; ++i) {
            fetch_row(next + c * from[1] + i * from[2], width);
            int64_t y = batch.reflect ? reflected(i + shift.y, height) : i + shift.y;
            if (y >= 0 && y < height)
                write_row(out + i * to[2], image + y * from[2], from[3], columns, scale,
                          batch.reflect);
            else
                fill_run(out + i * to[2], width, nothing);
        }
        for (int64_t i = 0; i < batch.cut; ++i)
            fill_run(out + (corner.y + i) * to[2] + corner.x, batch.cut, nothing);
    }
}

void image_batch(const Call& call)
{
    Batch batch(call);
    int64_t pixels = max64(1, batch.channels * batch.height * batch.width);
    parallel_for(batch.out.shape[0], ceil_div(grain, pixels), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            if (batch.data.dtype == DType::uint8)
                write_image<uint8_t>(batch, n);
            else
                write_image<float>(batch, n);
    });
}

}  // namespace

void add_images(Table& table) { table[Kernel::image_batch].run = image_batch; }

}  // namespace needle::NEEDLE_TARGET
