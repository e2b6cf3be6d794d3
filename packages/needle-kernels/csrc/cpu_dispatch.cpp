#include <cstring>

#include "caches.h"
#include "target.h"

namespace needle {

namespace {

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx2()
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512()
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

// Sums begin by turning floats into doubles, and a Zen 4 does that faster for two halves of a
// vector than for a whole one: in the caches they run 1.2 to 1.4 times as fast.
Table make_avx512_table()
{
    Table table = avx512::make_table();
    if (zen() == 4) table[Kernel::sum] = avx2::make_table()[Kernel::sum];
    return table;
}
#endif

const Target all_targets[] = {
    {"scalar", always, scalar::make_table, scalar::peak_loops},
#if defined(__x86_64__)
    {"avx2", has_avx2, avx2::make_table, avx2::peak_loops},
    {"avx512", has_avx512, make_avx512_table, avx512::peak_loops},
#endif
};

}  // namespace

const Target* targets() { return all_targets; }

int target_count() { return static_cast<int>(sizeof(all_targets) / sizeof(all_targets[0])); }

int find_target(const char* name)
{
    for (int i = 0; i < target_count(); ++i)
        if (std::strcmp(all_targets[i].name, name) == 0) return i;
    return -1;
}

int best_target(const char* cap)
{
    int widest = target_count() - 1;
    if (cap != nullptr && *cap != '\0') {
        widest = find_target(cap);
        if (widest < 0) return -1;
    }
    while (widest > 0 && !all_targets[widest].supported()) --widest;
    return widest;
}

}  // namespace needle
