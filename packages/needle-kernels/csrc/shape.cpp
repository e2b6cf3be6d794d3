#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_shape(Table&) {}

}  // namespace needle::NEEDLE_TARGET
