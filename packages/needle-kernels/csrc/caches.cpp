#include "caches.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace needle {

namespace {

Caches find()
{
    Caches found{1 << 20, 4096, 0, 0, false, false, false};
#if defined(_SC_LEVEL2_CACHE_SIZE)  // the GNU C library's
    if (long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) found.second_bytes = bytes;
#endif
#if defined(__x86_64__)
    if (__builtin_cpu_is("amd")) {
        bool since_zen4 = __builtin_cpu_supports("avx512f") != 0;
        bool since_zen5 = __builtin_cpu_supports("avx512vp2intersect") != 0;
        found.read_ahead = since_zen5 ? 4096 : 0;     // sums of 64 MB: Zen 4 10 %, Zen 5 4-15 %
        found.widening_ahead = since_zen4 ? 0 : 768;  // Zen 3: 5-12 %
        found.operand_ahead = since_zen5 ? 4096 : 0;  // 6-15 %
        found.stalls_at_gaps = since_zen5;            // up to half of the speed
        found.in_order = true;
        found.in_turn = since_zen4;
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
