#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_matmul(Table&) {}

}  // namespace needle::NEEDLE_TARGET
