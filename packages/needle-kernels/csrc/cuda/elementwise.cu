// Elementwise kernels: one function of an element, or of two, per operation.
#include "../wrapping.h"
#include "families.h"
#include "map.cuh"

namespace needle::cuda {

namespace {

template <class T>
constexpr bool is_float = T(0.5) != T(0);

template <class T>
__device__ __forceinline__ bool negative(T x)
{
    if constexpr (T(-1) < T(0))
        return x < T(0);
    else
        return false;
}

// ---- one input; the second argument is not there

struct Negate {
    template <class T>
    __device__ T operator()(T x, T) const
    {
        if constexpr (is_float<T>)
            return -x;
        else
            return T(Wrapping<T>(0) - Wrapping<T>(x));
    }
};

struct Relu {
    template <class T>
    __device__ T operator()(T x, T) const
    {
        return negative(x) ? T(0) : x;  // NaN stays
    }
};

struct Abs {
    template <class T>
    __device__ T operator()(T x, T) const
    {
        if constexpr (is_float<T>)
            return fabs(x);
        else if constexpr (sizeof(T) == 1)
            return x;
        else
            return negative(x) ? T(Wrapping<T>(0) - Wrapping<T>(x)) : x;
    }
};

struct LogicalNot {
    __device__ uint8_t operator()(uint8_t x, uint8_t) const { return x == 0; }
};

struct Sqrt {
    __device__ float operator()(float x, float) const { return sqrtf(x); }
    __device__ double operator()(double x, double) const { return sqrt(x); }
};

struct Exp {
    __device__ float operator()(float x, float) const { return expf(x); }
    __device__ double operator()(double x, double) const { return exp(x); }
};

struct Log {
    __device__ float operator()(float x, float) const { return logf(x); }
    __device__ double operator()(double x, double) const { return log(x); }
};

struct Tanh {
    __device__ float operator()(float x, float) const { return tanhf(x); }
    __device__ double operator()(double x, double) const { return tanh(x); }
};

struct Sigmoid {
    __device__ float operator()(float x, float) const { return 1.0f / (1.0f + expf(-x)); }
    __device__ double operator()(double x, double) const { return 1.0 / (1.0 + exp(-x)); }
};

// ---- two inputs

struct LogicalAnd {
    __device__ uint8_t operator()(uint8_t a, uint8_t b) const { return a != 0 && b != 0; }
};

struct LogicalOr {
    __device__ uint8_t operator()(uint8_t a, uint8_t b) const { return (a | b) != 0; }
};

struct LogicalXor {
    __device__ uint8_t operator()(uint8_t a, uint8_t b) const { return (a != 0) != (b != 0); }
};

struct OrNot {
    __device__ uint8_t operator()(uint8_t a, uint8_t b) const { return a != 0 || b == 0; }
};

// Each names the operation that NumPy, or arithmetic modulo 2, means for bool.
struct Add {
    using Boolean = LogicalOr;
    template <class T>
    __device__ T operator()(T a, T b) const
    {
        return T(Wrapping<T>(a) + Wrapping<T>(b));
    }
};

struct Subtract {
    using Boolean = LogicalXor;
    template <class T>
    __device__ T operator()(T a, T b) const
    {
        return T(Wrapping<T>(a) - Wrapping<T>(b));
    }
};

struct Multiply {
    using Boolean = LogicalAnd;
    template <class T>
    __device__ T operator()(T a, T b) const
    {
        return T(Wrapping<T>(a) * Wrapping<T>(b));
    }
};

struct Maximum {
    using Boolean = LogicalOr;
    template <class T>
    __device__ T operator()(T a, T b) const
    {
        return a > b || a != a ? a : b;  // NaN if either is
    }
};

struct Minimum {
    using Boolean = LogicalAnd;
    template <class T>
    __device__ T operator()(T a, T b) const
    {
        return a < b || a != a ? a : b;
    }
};

struct Divide {
    template <class T>
    __device__ T operator()(T a, T b) const
    {
        return a / b;
    }
};

struct ReluGrad {
    template <class T>
    __device__ T operator()(T dy, T y) const
    {
        return y > T(0) ? dy : T(0);
    }
};

struct TanhGrad {
    template <class T>
    __device__ T operator()(T dy, T y) const
    {
        return dy * (T(1) - y * y);
    }
};

struct SigmoidGrad {
    template <class T>
    __device__ T operator()(T dy, T y) const
    {
        return dy * (y * (T(1) - y));
    }
};

struct Equal {
    template <class T>
    __device__ uint8_t operator()(T a, T b) const
    {
        return a == b;
    }
};

struct NotEqual {
    template <class T>
    __device__ uint8_t operator()(T a, T b) const
    {
        return a != b;
    }
};

struct Less {
    template <class T>
    __device__ uint8_t operator()(T a, T b) const
    {
        return a < b;
    }
};

struct LessEqual {
    template <class T>
    __device__ uint8_t operator()(T a, T b) const
    {
        return a <= b;
    }
};

struct Power {
    using Boolean = OrNot;

    __device__ float operator()(float a, float b) const { return powf(a, b); }
    __device__ double operator()(double a, double b) const { return pow(a, b); }

    // a^b modulo 2^bits; a negative exponent gives the exact quotient rounded towards zero (0 for
    // a = 0).
    template <class T>
    __device__ T operator()(T a, T b) const
    {
        if (negative(b)) {
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
};

// ---- which types an operation is for

template <class Op>
void any_type(const Call& call)
{
    with_type(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        map<T, T, T>(call, Op{});
    });
}

template <class Op>
void arithmetic(const Call& call)
{
    if (call.arrays[0].dtype == DType::boolean)
        map<uint8_t, uint8_t, uint8_t>(call, typename Op::Boolean{});
    else
        any_type<Op>(call);
}

template <class Op>
void floats(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        map<T, T, T>(call, Op{});
    });
}

template <class Op>
void logical(const Call& call)
{
    map<uint8_t, uint8_t, uint8_t>(call, Op{});
}

template <class Op>
void comparison(const Call& call)
{
    with_type(call.arrays[1].dtype, [&](auto zero) {
        using T = decltype(zero);
        map<uint8_t, T, T>(call, Op{});
    });
}

// a > b is b < a: no kernel of its own.
template <class Op>
void swapped_comparison(const Call& call)
{
    Array arrays[] = {call.arrays[0], call.arrays[2], call.arrays[1]};
    Call swapped = call;
    swapped.arrays = arrays;
    comparison<Op>(swapped);
}

}  // namespace

void add_elementwise(Table& table)
{
    table[Kernel::negate].run = any_type<Negate>;
    table[Kernel::relu].run = any_type<Relu>;
    table[Kernel::abs].run = any_type<Abs>;
    table[Kernel::sqrt].run = floats<Sqrt>;
    table[Kernel::exp].run = floats<Exp>;
    table[Kernel::log].run = floats<Log>;
    table[Kernel::tanh].run = floats<Tanh>;
    table[Kernel::sigmoid].run = floats<Sigmoid>;
    table[Kernel::logical_not].run = logical<LogicalNot>;

    table[Kernel::add].run = arithmetic<Add>;
    table[Kernel::subtract].run = arithmetic<Subtract>;
    table[Kernel::multiply].run = arithmetic<Multiply>;
    table[Kernel::maximum].run = arithmetic<Maximum>;
    table[Kernel::minimum].run = arithmetic<Minimum>;
    table[Kernel::divide].run = floats<Divide>;
    table[Kernel::power].run = arithmetic<Power>;

    table[Kernel::equal].run = comparison<Equal>;
    table[Kernel::not_equal].run = comparison<NotEqual>;
    table[Kernel::less].run = comparison<Less>;
    table[Kernel::less_equal].run = comparison<LessEqual>;
    table[Kernel::greater].run = swapped_comparison<Less>;
    table[Kernel::greater_equal].run = swapped_comparison<LessEqual>;
    table[Kernel::logical_and].run = logical<LogicalAnd>;
    table[Kernel::logical_or].run = logical<LogicalOr>;

    table[Kernel::relu_grad].run = floats<ReluGrad>;
    table[Kernel::tanh_grad].run = floats<TanhGrad>;
    table[Kernel::sigmoid_grad].run = floats<SigmoidGrad>;
}

}  // namespace needle::cuda
