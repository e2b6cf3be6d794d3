#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_conv(Table&) {}

}  // namespace needle::NEEDLE_TARGET
