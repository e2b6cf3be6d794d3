#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_elementwise(Table&) {}

}  // namespace needle::NEEDLE_TARGET
