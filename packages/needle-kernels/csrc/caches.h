// What the kernels know of the processor's caches. Each core is taken to have its own two levels.
#pragma once

#include <cstdint>

namespace needle {

struct Caches {
    int64_t first_ways;      // lines whose addresses agree modulo first_way that level 1 can hold
    int64_t first_way;       // bytes
    int64_t second_bytes;    // of level 2
};

// Asked of the system once; where it does not say: 8 ways of 4 KB, and 1 MB.
const Caches& caches();

}  // namespace needle
