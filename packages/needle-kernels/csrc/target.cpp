// The kernel table of one CPU target.
#include "target.h"

#include "families.h"

namespace needle::NEEDLE_TARGET {

Table make_table()
{
    Table table;
    add_elementwise(table);
    add_reduce(table);
    add_shape(table);
    add_matmul(table);
    add_conv(table);
    add_conv_weight_grad(table);
    add_pool(table);
    add_normalize(table);
    add_softmax(table);
    add_recurrent(table);
    add_index(table);
    add_images(table);
    add_optimize(table);
    return table;
}

}  // namespace needle::NEEDLE_TARGET
