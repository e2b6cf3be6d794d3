// How many threads a kernel may use.
#pragma once

namespace needle {

int num_threads();
void set_num_threads(int n);  // n >= 1

}  // namespace needle
