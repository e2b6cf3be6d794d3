// What each CPU target exports: one function per family that enters its kernels into a table.
// Included once per target, with NEEDLE_TARGET set to scalar, avx2 or avx512.
#pragma once

#include "kernels.h"
#include "peak.h"

namespace needle::NEEDLE_TARGET {

void add_elementwise(Table& table);
void add_reduce(Table& table);
void add_shape(Table& table);
void add_matmul(Table& table);
void add_conv(Table& table);
void add_conv_weight_grad(Table& table);
void add_pool(Table& table);
void add_normalize(Table& table);
void add_softmax(Table& table);
void add_recurrent(Table& table);
void add_index(Table& table);
void add_images(Table& table);
void add_optimize(Table& table);

PeakLoops peak_loops();

}  // namespace needle::NEEDLE_TARGET
