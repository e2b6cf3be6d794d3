#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_index(Table&) {}

}  // namespace needle::NEEDLE_TARGET
