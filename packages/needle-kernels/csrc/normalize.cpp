#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_normalize(Table&) {}

}  // namespace needle::NEEDLE_TARGET
