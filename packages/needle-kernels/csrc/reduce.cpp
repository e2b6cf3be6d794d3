#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_reduce(Table&) {}

}  // namespace needle::NEEDLE_TARGET
