#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_optimize(Table&) {}

}  // namespace needle::NEEDLE_TARGET
