#include "caches.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace needle {

namespace {

Caches find()
{
    Caches found{1 << 20, 4096, 0, false};
#if defined(_SC_LEVEL2_CACHE_SIZE)  // the GNU C library's
    if (long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) found.second_bytes = bytes;
#endif
#if defined(__x86_64__)
    if (__builtin_cpu_is("amd")) {
        bool zen4 = __builtin_cpu_supports("avx512f") != 0;
        found.read_ahead = 0;                   // Zen 4: sums of 64 MB 10 % faster
        found.widening_ahead = zen4 ? 0 : 768;  // Zen 3: 5-12 %
        found.in_turn = zen4;
    }
#endif
    return found;
}

Caches& known()
{
    static Caches found = find();
    return found;
}

}  // namespace

const Caches& caches() { return known(); }
void set_in_turn(bool on) { known().in_turn = on; }

}  // namespace needle
