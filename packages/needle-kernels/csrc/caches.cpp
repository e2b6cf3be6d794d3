#include "caches.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace needle {

namespace {

#if defined(_SC_LEVEL1_DCACHE_ASSOC)  // the GNU C library's
// The system's answer, or `otherwise` where it has none.
int64_t ask(int name, int64_t otherwise)
{
    long found = sysconf(name);
    return found > 0 ? found : otherwise;
}
#endif

Caches find()
{
    Caches found{8, 4096, 1 << 20, 4096};
#if defined(_SC_LEVEL1_DCACHE_ASSOC)
    found.first_ways = ask(_SC_LEVEL1_DCACHE_ASSOC, found.first_ways);
    int64_t bytes = ask(_SC_LEVEL1_DCACHE_SIZE, found.first_ways * found.first_way);
    found.first_way = bytes / found.first_ways;
    found.second_bytes = ask(_SC_LEVEL2_CACHE_SIZE, found.second_bytes);
#endif
#if defined(__x86_64__)
    if (__builtin_cpu_is("amd")) found.read_ahead = 0;  // Zen 4: sums of 64 MB 10 % faster
#endif
    return found;
}

}  // namespace

const Caches& caches()
{
    static const Caches found = find();
    return found;
}

}  // namespace needle
