// image_batch: rows of a data set of images as one batch of floats, each image shifted, mirrored, a
// square of it cut out, its values scaled. Images and batch are (N, C, H, W).
#include "families.h"
#include "ids.cuh"

namespace needle::cuda {

namespace {

constexpr int image_threads = 256;

// One number per channel; null: the same for all.
struct PerChannel {
    const float* data;
    int64_t stride;
    float otherwise;

    PerChannel(const Array& a, float otherwise)
        : data(a.as<float>()), stride(data != nullptr ? a.strides[0] : 0), otherwise(otherwise)
    {
    }
    __device__ float operator[](int64_t c) const { return data ? data[c * stride] : otherwise; }
};

// One (y, x) per image; null: all are (0, 0).
struct Pairs {
    const int64_t* data;
    int64_t stride, step;

    explicit Pairs(const Array& a)
        : data(a.as<int64_t>()),
          stride(data != nullptr ? a.strides[0] : 0),
          step(data != nullptr ? a.strides[1] : 0)
    {
    }
    __device__ int64_t y(int64_t n) const { return data != nullptr ? data[n * stride] : 0; }
    __device__ int64_t x(int64_t n) const { return data != nullptr ? data[n * stride + step] : 0; }
};

template <class T>
struct Batch {
    float* out;
    const T* data;
    int64_t shape[4], out_strides[4], strides[4];
    Ids ids;
    Pairs shifts, corners;
    const uint8_t* mirrored;  // null: none is
    int64_t mirrored_stride;
    PerChannel divisor, offset;
    bool reflect;
    int64_t cut;

    explicit Batch(const Call& call)
        : out(call.arrays[0].as<float>()),
          data(call.arrays[1].as<T>()),
          ids(call, call.arrays[2], call.arrays[1].shape[0]),
          shifts(call.arrays[3]),
          corners(call.arrays[5]),
          mirrored(call.arrays[4].as<uint8_t>()),
          mirrored_stride(mirrored != nullptr ? call.arrays[4].strides[0] : 0),
          divisor(call.arrays[6], 1.0f),
          offset(call.arrays[7], -0.0f),  // adding 0 would make a positive 0 of a negative one
          reflect(call.scalars[0] != 0),
          cut(static_cast<int64_t>(call.scalars[1]))
    {
        for (int axis = 0; axis < 4; ++axis) {
            shape[axis] = call.arrays[0].shape[axis];
            out_strides[axis] = call.arrays[0].strides[axis];
            strides[axis] = call.arrays[1].strides[axis];
        }
    }
};

// Place k of an axis of n pixels, mirrored at the first or the last one where it lies outside.
__device__ int64_t reflected(int64_t k, int64_t n)
{
    return k < 0 ? -k : k >= n ? 2 * (n - 1) - k : k;
}

// No farther than out of sight: all shifts beyond are the same, and adding them cannot overflow.
__device__ int64_t within(int64_t shift, int64_t n)
{
    return shift < -n ? -n : shift > n ? n : shift;
}

// Pixel (i, j) of image n as it was in its source: 0 beside it, or its reflection.
template <class T>
__device__ float pixel(const Batch<T>& b, const T* image, int64_t n, int64_t i, int64_t j)
{
    int64_t height = b.shape[2], width = b.shape[3];
    int64_t top = i - b.corners.y(n), left = j - b.corners.x(n);
    if (top >= 0 && top < b.cut && left >= 0 && left < b.cut) return 0.0f;
    if (b.mirrored != nullptr && b.mirrored[n * b.mirrored_stride]) j = width - 1 - j;
    int64_t y = i + within(b.shifts.y(n), height), x = j + within(b.shifts.x(n), width);
    if (b.reflect) {
        y = reflected(y, height);
        x = reflected(x, width);
    }
    bool inside = y >= 0 && y < height && x >= 0 && x < width;
    return inside ? static_cast<float>(image[y * b.strides[2] + x * b.strides[3]]) : 0.0f;
}

// A row of threads writes a row of pixels.
template <class T>
__global__ void __launch_bounds__(image_threads) image_batch_kernel(Batch<T> b)
{
    int64_t channels = b.shape[1], height = b.shape[2], rows = b.shape[0] * channels * height;
    for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < rows;
         row += int64_t(gridDim.x) * blockDim.y) {
        int64_t i = row % height, c = row / height % channels, n = row / height / channels;
        int64_t from = b.ids[n];
        if (from < 0) continue;
        const T* image = b.data + from * b.strides[0] + c * b.strides[1];
        float* out = b.out + n * b.out_strides[0] + c * b.out_strides[1] + i * b.out_strides[2];
        float divisor = b.divisor[c], offset = b.offset[c];
        // A true division: a byte / 255 is the float that was a file's pixel before it was a byte.
        for (int64_t j = threadIdx.x; j < b.shape[3]; j += blockDim.x)
            out[j * b.out_strides[3]] = pixel(b, image, n, i, j) / divisor + offset;
    }
}

template <class T>
void run(const Call& call)
{
    const int64_t* shape = call.arrays[0].shape;
    dim3 block = rows_of_threads(shape[3], image_threads);
    launch(call, image_batch_kernel<T>, grid_for(shape[0] * shape[1] * shape[2], block.y), block, 0,
           Batch<T>(call));
}

void image_batch(const Call& call)
{
    if (call.arrays[1].dtype == DType::uint8)
        run<uint8_t>(call);
    else
        run<float>(call);
}

}  // namespace

void add_images(Table& table) { table[Kernel::image_batch].run = image_batch; }

}  // namespace needle::cuda
