#include "caches.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace needle {

namespace {

Caches find()
{
    Caches found;
#if defined(_SC_LEVEL2_CACHE_SIZE)  // the GNU C library's
    if (long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) found.second_bytes = bytes;
#endif
    if (int generation = zen(); generation > 0) {
        found.read_ahead = generation < 5 ? 0 : 4096;     // sums of 64 MB: Zen 4 10 %, Zen 5 4-15 %
        found.widening_ahead = generation < 4 ? 768 : 0;  // Zen 3: 5-12 %
        found.operand_ahead = generation < 5 ? 0 : 4096;  // 6-15 %
        found.gap_ahead = generation < 5 ? 0 : 8192;      // up to 60 %
        found.spaced_ahead = 0;                           // not timed
        found.results_ahead = 0;                          // not timed
        found.ahead_into_second = false;                  // Zen 5: 0.4-0.9 of the speed
        found.large_third = false;
        found.in_order = true;
        found.in_turn = generation >= 4;
        found.sums_turn_often = generation >= 5;  // 2-5 %
    }
    return found;
}

Caches& known()
{
    static Caches found = find();
    return found;
}

}  // namespace

int zen()
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_is("amd")) return 0;
    if (__builtin_cpu_supports("avx512vp2intersect")) return 5;
    return __builtin_cpu_supports("avx512f") ? 4 : 3;
#else
    return 0;
#endif
}

const Caches& caches() { return known(); }
void set_in_turn(bool on) { known().in_turn = on; }

}  // namespace needle
