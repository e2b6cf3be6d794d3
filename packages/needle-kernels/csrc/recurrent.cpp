#include "families.h"

namespace needle::NEEDLE_TARGET {

void add_recurrent(Table&) {}

}  // namespace needle::NEEDLE_TARGET
