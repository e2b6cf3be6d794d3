// The one declaration of every kernel. Each CPU target, the NumPy twin and CUDA fill a Table.
#pragma once

#include <cstdint>

#include "call.h"

namespace needle {

enum class Kernel : int {
    // shape
    copy,
    fill,
    // elementwise, one input
    negate,
    exp,
    log,
    tanh,
    sigmoid,
    relu,
    sqrt,
    abs,
    logical_not,
    // elementwise, two inputs
    add,
    subtract,
    multiply,
    divide,
    power,
    maximum,
    minimum,
    equal,
    not_equal,
    less,
    less_equal,
    greater,
    greater_equal,
    logical_and,
    logical_or,
    relu_grad,
    tanh_grad,
    sigmoid_grad,
    // reduce
    sum,
    max,
    min,
    // matmul
    matmul,
    linear_weight_grad,
    // conv
    conv,
    conv_input_grad,
    conv_weight_grad,
    // pool
    max_pool,
    max_pool_grad,
    max_pool_pick,
    avg_pool,
    avg_pool_grad,
    // normalize
    batch_norm,
    batch_norm_eval,
    batch_norm_grad,
    layer_norm,
    layer_norm_grad,
    // softmax
    softmax,
    logsoftmax,
    logsumexp,
    softmax_cross_entropy,
    softmax_cross_entropy_grad,
    // recurrent
    lstm_cell,
    lstm_cell_grad,
    lstm_sequence,
    lstm_sequence_grad,
    rnn_sequence,
    rnn_sequence_grad,
    // index
    gather,
    scatter_add,
    one_hot,
    // images
    image_batch,
    // optimize
    moving_average,
    sgd,
    adam,
    sum_squares,
    scale,
    count
};

constexpr int kernel_count = static_cast<int>(Kernel::count);

// The names Python knows the kernels by, in the order of the enumeration.
inline constexpr const char* kernel_names[] = {
    "copy",
    "fill",
    "negate",
    "exp",
    "log",
    "tanh",
    "sigmoid",
    "relu",
    "sqrt",
    "abs",
    "logical_not",
    "add",
    "subtract",
    "multiply",
    "divide",
    "power",
    "maximum",
    "minimum",
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "logical_and",
    "logical_or",
    "relu_grad",
    "tanh_grad",
    "sigmoid_grad",
    "sum",
    "max",
    "min",
    "matmul",
    "linear_weight_grad",
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "max_pool",
    "max_pool_grad",
    "max_pool_pick",
    "avg_pool",
    "avg_pool_grad",
    "batch_norm",
    "batch_norm_eval",
    "batch_norm_grad",
    "layer_norm",
    "layer_norm_grad",
    "softmax",
    "logsoftmax",
    "logsumexp",
    "softmax_cross_entropy",
    "softmax_cross_entropy_grad",
    "lstm_cell",
    "lstm_cell_grad",
    "lstm_sequence",
    "lstm_sequence_grad",
    "rnn_sequence",
    "rnn_sequence_grad",
    "gather",
    "scatter_add",
    "one_hot",
    "image_batch",
    "moving_average",
    "sgd",
    "adam",
    "sum_squares",
    "scale",
};
static_assert(sizeof(kernel_names) / sizeof(kernel_names[0]) == kernel_count);

struct Entry {
    void (*run)(const Call&) = nullptr;
    int64_t (*workspace)(const Call&) = nullptr;  // bytes of scratch memory; nullptr: none
};

struct Table {
    Entry entries[kernel_count];

    NEEDLE_INLINE Entry& operator[](Kernel kernel) { return entries[static_cast<int>(kernel)]; }
    NEEDLE_INLINE const Entry& operator[](int kernel) const { return entries[kernel]; }
};

}  // namespace needle
