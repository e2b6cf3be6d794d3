// Each family of kernels adds its own to the device's table.
#pragma once

#include "../kernels.h"

namespace needle::cuda {

void add_elementwise(Table& table);
void add_shape(Table& table);
void add_reduce(Table& table);
void add_matmul(Table& table);
void add_conv(Table& table);
void add_pool(Table& table);
void add_normalize(Table& table);
void add_softmax(Table& table);
void add_recurrent(Table& table);
void add_index(Table& table);
void add_images(Table& table);
void add_optimize(Table& table);

}  // namespace needle::cuda
