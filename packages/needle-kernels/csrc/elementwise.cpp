// Elementwise kernels: one function per element, or per vector, and one table of rows per
// operation.
#include "families.h"
#include "loops.h"
#include "power.h"
#include "wrapping.h"

namespace needle::NEEDLE_TARGET {

namespace {

// The fewest elements that pay for a thread: simple arithmetic, and functions with a polynomial or
// more.
constexpr int64_t cheap_grain = 32768;
constexpr int64_t costly_grain = 4096;

template <class T>
constexpr bool is_float = false;
template <>
constexpr bool is_float<float> = true;
template <>
constexpr bool is_float<double> = true;

// ---- one input

struct Negate {
    template <class T>
    static T apply(T x)
    {
        if constexpr (is_float<T>)
            return -x;
        else
            return T(Wrapping<T>(0) - Wrapping<T>(x));
    }
};

struct Relu {
    template <class T>
    static T apply(T x)
    {
        return x < T(0) ? T(0) : x;  // NaN stays
    }
};

struct Abs {
    template <class T>
    static T apply(T x)
    {
        if constexpr (sizeof(T) == 1)
            return x;
        else if constexpr (is_float<T>)
            return T(sizeof(T) == 4 ? __builtin_fabsf(float(x)) : __builtin_fabs(double(x)));
        else
            return x < 0 ? Negate::apply(x) : x;
    }
};

struct Sqrt {
    static float apply(float x) { return __builtin_sqrtf(x); }
    static double apply(double x) { return __builtin_sqrt(x); }
};

struct LogicalNot {
    static uint8_t apply(uint8_t x) { return x == 0; }
};

template <class Op, class T>
void unary_row(char* const* data, const bool*, int64_t n)
{
    T* out = reinterpret_cast<T*>(data[0]);
    const T* a = reinterpret_cast<const T*>(data[1]);
    NEEDLE_VECTORIZE
    for (int64_t i = 0; i < n; ++i) out[i] = Op::apply(a[i]);
}

struct Exp {
    template <class T>
    static Vec<T> apply(Vec<T> x)
    {
        return vexp<T>(x);
    }
};

struct Log {
    template <class T>
    static Vec<T> apply(Vec<T> x)
    {
        return vlog<T>(x);
    }
};

struct Tanh {
    template <class T>
    static Vec<T> apply(Vec<T> x)
    {
        return vtanh<T>(x);
    }
};

struct Sigmoid {
    template <class T>
    static Vec<T> apply(Vec<T> x)
    {
        return vsigmoid<T>(x);
    }
};

template <class Op, class T>
void vector_row(char* const* data, const bool*, int64_t n)
{
    T* out = reinterpret_cast<T*>(data[0]);
    const T* a = reinterpret_cast<const T*>(data[1]);
    int64_t i = 0;
    for (; i + lanes<T> <= n; i += lanes<T>) store(out + i, Op::template apply<T>(load(a + i)));
    if (i < n) store_first(out + i, Op::template apply<T>(load_first(a + i, n - i)), n - i);
}

template <class Op>
void run_unary(const Call& call)
{
    static constexpr RowFunction rows[] = {unary_row<Op, float>,   unary_row<Op, double>,
                                           unary_row<Op, int32_t>, unary_row<Op, int64_t>,
                                           unary_row<Op, uint8_t>, unary_row<Op, uint8_t>};
    run_rows<2>(call.arrays, rows[static_cast<int>(call.arrays[0].dtype)], cheap_grain);
}

void run_sqrt(const Call& call)
{
    bool single = call.arrays[0].dtype == DType::float32;
    run_rows<2>(call.arrays, single ? unary_row<Sqrt, float> : unary_row<Sqrt, double>,
                cheap_grain);
}

void run_logical_not(const Call& call)
{
    run_rows<2>(call.arrays, unary_row<LogicalNot, uint8_t>, cheap_grain);
}

template <class Op>
void run_vector(const Call& call)
{
    bool single = call.arrays[0].dtype == DType::float32;
    run_rows<2>(call.arrays, single ? vector_row<Op, float> : vector_row<Op, double>, costly_grain);
}

// ---- two inputs

template <class Op, class Out, class T>
void binary_row(char* const* data, const bool* repeated, int64_t n)
{
    Out* out = reinterpret_cast<Out*>(data[0]);
    const T* a = reinterpret_cast<const T*>(data[1]);
    const T* b = reinterpret_cast<const T*>(data[2]);
    if (repeated[1] && repeated[2]) {
        Out value = Op::apply(*a, *b);
        for (int64_t i = 0; i < n; ++i) out[i] = value;
    } else if (repeated[1]) {
        T value = *a;
        NEEDLE_VECTORIZE
        for (int64_t i = 0; i < n; ++i) out[i] = Op::apply(value, b[i]);
    } else if (repeated[2]) {
        T value = *b;
        NEEDLE_VECTORIZE
        for (int64_t i = 0; i < n; ++i) out[i] = Op::apply(a[i], value);
    } else {
        NEEDLE_VECTORIZE
        for (int64_t i = 0; i < n; ++i) out[i] = Op::apply(a[i], b[i]);
    }
}

struct LogicalAnd {
    static uint8_t apply(uint8_t a, uint8_t b) { return (a != 0) & (b != 0); }
};

struct LogicalOr {
    static uint8_t apply(uint8_t a, uint8_t b) { return (a | b) != 0; }
};

struct LogicalXor {
    static uint8_t apply(uint8_t a, uint8_t b) { return (a != 0) != (b != 0); }
};

// Each names the operation that NumPy, or arithmetic modulo 2, means for bool.
struct Add {
    using Boolean = LogicalOr;
    template <class T>
    static T apply(T a, T b)
    {
        return T(Wrapping<T>(a) + Wrapping<T>(b));
    }
};

struct Subtract {
    using Boolean = LogicalXor;
    template <class T>
    static T apply(T a, T b)
    {
        return T(Wrapping<T>(a) - Wrapping<T>(b));
    }
};

struct Multiply {
    using Boolean = LogicalAnd;
    template <class T>
    static T apply(T a, T b)
    {
        return T(Wrapping<T>(a) * Wrapping<T>(b));
    }
};

struct Maximum {
    using Boolean = LogicalOr;
    template <class T>
    static T apply(T a, T b)
    {
        return a > b || a != a ? a : b;  // NaN if either is
    }
};

struct Minimum {
    using Boolean = LogicalAnd;
    template <class T>
    static T apply(T a, T b)
    {
        return a < b || a != a ? a : b;
    }
};

struct Divide {
    template <class T>
    static T apply(T a, T b)
    {
        return a / b;
    }
};

struct ReluGrad {
    template <class T>
    static T apply(T dy, T y)
    {
        return y > T(0) ? dy : T(0);
    }
};

struct TanhGrad {
    template <class T>
    static T apply(T dy, T y)
    {
        return dy * (T(1) - y * y);
    }
};

struct SigmoidGrad {
    template <class T>
    static T apply(T dy, T y)
    {
        return dy * (y * (T(1) - y));
    }
};

template <class Op>
void run_arithmetic(const Call& call)
{
    using Boolean = typename Op::Boolean;
    static constexpr RowFunction rows[] = {
        binary_row<Op, float, float>,     binary_row<Op, double, double>,
        binary_row<Op, int32_t, int32_t>, binary_row<Op, int64_t, int64_t>,
        binary_row<Op, uint8_t, uint8_t>, binary_row<Boolean, uint8_t, uint8_t>};
    run_rows<3>(call.arrays, rows[static_cast<int>(call.arrays[0].dtype)], cheap_grain);
}

template <class Op>
void run_binary_float(const Call& call)
{
    bool single = call.arrays[0].dtype == DType::float32;
    run_rows<3>(call.arrays, single ? binary_row<Op, float, float> : binary_row<Op, double, double>,
                cheap_grain);
}

template <class Op>
void run_logical(const Call& call)
{
    run_rows<3>(call.arrays, binary_row<Op, uint8_t, uint8_t>, cheap_grain);
}

// ---- comparisons

struct Equal {
    template <class T>
    static uint8_t apply(T a, T b)
    {
        return a == b;
    }
};

struct NotEqual {
    template <class T>
    static uint8_t apply(T a, T b)
    {
        return a != b;
    }
};

struct Less {
    template <class T>
    static uint8_t apply(T a, T b)
    {
        return a < b;
    }
};

struct LessEqual {
    template <class T>
    static uint8_t apply(T a, T b)
    {
        return a <= b;
    }
};

struct Greater {
    template <class T>
    static uint8_t apply(T a, T b)
    {
        return a > b;
    }
};

struct GreaterEqual {
    template <class T>
    static uint8_t apply(T a, T b)
    {
        return a >= b;
    }
};

template <class Op>
void run_comparison(const Call& call)
{
    static constexpr RowFunction rows[] = {
        binary_row<Op, uint8_t, float>,   binary_row<Op, uint8_t, double>,
        binary_row<Op, uint8_t, int32_t>, binary_row<Op, uint8_t, int64_t>,
        binary_row<Op, uint8_t, uint8_t>, binary_row<Op, uint8_t, uint8_t>};
    run_rows<3>(call.arrays, rows[static_cast<int>(call.arrays[1].dtype)], cheap_grain);
}

// ---- power

float power(float a, float b) { return __builtin_powf(a, b); }
double power(double a, double b) { return __builtin_pow(a, b); }

// a^b modulo 2^bits; a negative exponent gives the exact quotient rounded towards zero (0 for a =
// 0).
template <class T>
T power(T a, T b)
{
    if (b < 0) {
        if (a == 1) return 1;
        if (sizeof(T) > 1 && a == T(-1)) return b % 2 == 0 ? T(1) : T(-1);
        return 0;
    }
    Wrapping<T> result = 1, square = Wrapping<T>(a);
    for (Wrapping<T> rest = Wrapping<T>(b); rest != 0; rest >>= 1) {
        if (rest & 1) result = Wrapping<T>(result * square);
        square = Wrapping<T>(square * square);
    }
    return T(result);
}

struct Power {
    template <class T>
    static T apply(T a, T b)
    {
        return power(a, b);
    }
};

// pow defines sqrt differently at these: pow(-0.0, 0.5) is 0.0 and pow(-inf, 0.5) is inf.
template <class T>
struct PowerHalf {
    static T apply(T a)
    {
        constexpr T infinity = math::Constants<T>::infinity;
        return a == -infinity ? infinity : Sqrt::apply(a + T(0));
    }
};

template <class T>
struct PowerTwo {
    static T apply(T a) { return a * a; }
};

template <class T>
struct PowerThree {
    static T apply(T a) { return a * a * a; }
};

template <class T>
struct Reciprocal {
    static T apply(T a) { return T(1) / a; }
};

// The exponents that need no logarithm. Returns whether `b` is one of them.
template <class T>
bool power_by_constant(char* const* data, T b, int64_t n)
{
    if (b == T(2))
        unary_row<PowerTwo<T>, T>(data, nullptr, n);
    else if (b == T(3))
        unary_row<PowerThree<T>, T>(data, nullptr, n);
    else if (b == T(0.5))
        unary_row<PowerHalf<T>, T>(data, nullptr, n);
    else if (b == T(-1))
        unary_row<Reciprocal<T>, T>(data, nullptr, n);
    else
        return false;
    return true;
}

// As many numbers of a row as a chunk has, or one that is repeated: there, or in `room`.
template <class T>
const T* chunk_of(const T* row, bool repeated, int count, int chunk, T* room)
{
    if (!repeated && count == chunk) return row;
    for (int i = 0; i < count; ++i) room[i] = row[repeated ? 0 : i];
    return room;
}

// out = a^b for a vector of doubles' lanes.
inline void store_power(float* out, const float* a, const float* b)
{
    store_narrowed(out, vpower_of_floats(load_widened(a), load_widened(b)));
}

#if defined(__AVX2__)
inline void store_power(double* out, const double* a, const double* b)
{
    store(out, vpower_of_doubles(load(a), load(b)));
}
#endif

// In vectors, and what is not ordinary one by one.
template <class T>
void power_row_ordinary(char* const* data, const bool* repeated, int64_t n)
{
    constexpr int chunk = 64;
    T* out = reinterpret_cast<T*>(data[0]);
    const T* a = reinterpret_cast<const T*>(data[1]);
    const T* b = reinterpret_cast<const T*>(data[2]);
    if (repeated[2] && !repeated[1] && power_by_constant<T>(data, *b, n)) return;
    T base_room[chunk] = {}, exponent_room[chunk] = {};
    for (int64_t begin = 0; begin < n; begin += chunk) {
        int count = static_cast<int>(min64(chunk, n - begin));
        const T* base =
            chunk_of(a + (repeated[1] ? 0 : begin), repeated[1], count, chunk, base_room);
        const T* exponent =
            chunk_of(b + (repeated[2] ? 0 : begin), repeated[2], count, chunk, exponent_room);
        T result[chunk];
        for (int i = 0; i < chunk; i += lanes<double>)
            store_power(result + i, base + i, exponent + i);
        int ordinary = 0;
        for (int i = 0; i < count; ++i) ordinary += is_ordinary(base[i], exponent[i]);
        for (int i = 0; i < count && ordinary < count; ++i)
            if (!is_ordinary(base[i], exponent[i])) result[i] = power(base[i], exponent[i]);
        std::memcpy(out + begin, result, static_cast<size_t>(count) * sizeof(T));
    }
}

void power_row_double(char* const* data, const bool* repeated, int64_t n)
{
#if defined(__AVX2__)
    power_row_ordinary<double>(data, repeated, n);
#else
    double exponent = *reinterpret_cast<const double*>(data[2]);
    if (repeated[2] && !repeated[1] && power_by_constant<double>(data, exponent, n)) return;
    binary_row<Power, double, double>(data, repeated, n);
#endif
}

void run_power(const Call& call)
{
    static constexpr RowFunction rows[] = {
        power_row_ordinary<float>,           power_row_double,
        binary_row<Power, int32_t, int32_t>, binary_row<Power, int64_t, int64_t>,
        binary_row<Power, uint8_t, uint8_t>, binary_row<GreaterEqual, uint8_t, uint8_t>,
    };
    run_rows<3>(call.arrays, rows[static_cast<int>(call.arrays[0].dtype)], costly_grain);
}

}  // namespace

void add_elementwise(Table& table)
{
    table[Kernel::negate] = {run_unary<Negate>};
    table[Kernel::relu] = {run_unary<Relu>};
    table[Kernel::abs] = {run_unary<Abs>};
    table[Kernel::sqrt] = {run_sqrt};
    table[Kernel::exp] = {run_vector<Exp>};
    table[Kernel::log] = {run_vector<Log>};
    table[Kernel::tanh] = {run_vector<Tanh>};
    table[Kernel::sigmoid] = {run_vector<Sigmoid>};
    table[Kernel::logical_not] = {run_logical_not};

    table[Kernel::add] = {run_arithmetic<Add>};
    table[Kernel::subtract] = {run_arithmetic<Subtract>};
    table[Kernel::multiply] = {run_arithmetic<Multiply>};
    table[Kernel::maximum] = {run_arithmetic<Maximum>};
    table[Kernel::minimum] = {run_arithmetic<Minimum>};
    table[Kernel::divide] = {run_binary_float<Divide>};
    table[Kernel::power] = {run_power};

    table[Kernel::equal] = {run_comparison<Equal>};
    table[Kernel::not_equal] = {run_comparison<NotEqual>};
    table[Kernel::less] = {run_comparison<Less>};
    table[Kernel::less_equal] = {run_comparison<LessEqual>};
    table[Kernel::greater] = {run_comparison<Greater>};
    table[Kernel::greater_equal] = {run_comparison<GreaterEqual>};
    table[Kernel::logical_and] = {run_logical<LogicalAnd>};
    table[Kernel::logical_or] = {run_logical<LogicalOr>};

    table[Kernel::relu_grad] = {run_binary_float<ReluGrad>};
    table[Kernel::tanh_grad] = {run_binary_float<TanhGrad>};
    table[Kernel::sigmoid_grad] = {run_binary_float<SigmoidGrad>};
}

}  // namespace needle::NEEDLE_TARGET
