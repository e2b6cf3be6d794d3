#include <cstring>

#include "array_layout.h"
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

// A Zen 5 reads memory from one end to the other faster by 32 bytes at a time than by 64
// (docs/performance.md). So kernels that do little more than that have an entry that chooses.
constexpr Kernel readers[] = {
    Kernel::copy,        Kernel::negate,     Kernel::relu,      Kernel::abs,
    Kernel::logical_not, Kernel::add,        Kernel::subtract,  Kernel::multiply,
    Kernel::maximum,     Kernel::minimum,    Kernel::equal,     Kernel::not_equal,
    Kernel::less,        Kernel::less_equal, Kernel::greater,   Kernel::greater_equal,
    Kernel::logical_and, Kernel::logical_or, Kernel::relu_grad, Kernel::sum,
    Kernel::max,         Kernel::min};

struct Readers {
    Table by_32_bytes = avx2::make_table(), by_64_bytes = avx512::make_table();
};

bool is_one_value(const Array& a)
{
    for (int axis = 0; axis < a.rank; ++axis)
        if (a.shape[axis] > 1 && a.strides[axis] != 0) return false;
    return true;
}

// Whether all operands lie in memory as in their shape, and are reduced to little from beyond the
// caches or have results that go past them. Short rows that are reduced have loops of their own.
bool reads_much_in_order(const Call& call)
{
    const Array &out = call.arrays[0], &first = call.arrays[1];
    const bool reduces = first.rank > out.rank;
    constexpr int64_t least_row = 1024, most_item = 8;
    if ((reduces ? first : out).size() < beyond_caches / most_item) return false;
    int64_t bytes = reduces ? 0 : out.size() * item_size(out.dtype), row = item_size(first.dtype);
    for (int i = 1; i < call.count; ++i) {
        const Array& a = call.arrays[i];
        if (is_one_value(a)) continue;
        if (!is_compact(a)) return false;
        bytes += a.size() * item_size(a.dtype);
    }
    if (bytes < (reduces ? 1 : 3) * beyond_caches) return false;
    for (int axis = out.rank; axis < first.rank; ++axis) row *= first.shape[axis];
    return !reduces || row > least_row;
}

const Entry& entry_for(const Call& call)
{
    static const Readers tables;
    return (reads_much_in_order(call) ? tables.by_32_bytes : tables.by_64_bytes)[call.kernel];
}

void run_by_size(const Call& call) { entry_for(call).run(call); }
int64_t workspace_by_size(const Call& call) { return entry_for(call).workspace(call); }

// Sums begin by turning floats into doubles, and a Zen 4 does that faster for two halves of a
// vector than for a whole one: in the caches they run 1.2 to 1.4 times as fast.
Table make_avx512_table()
{
    Table table = avx512::make_table();
    if (zen() == 4) table[Kernel::sum] = avx2::make_table()[Kernel::sum];
    for (Kernel reader : readers) {
        if (zen() < 5) break;
        Entry& entry = table[reader];
        entry = {run_by_size, entry.workspace != nullptr ? workspace_by_size : nullptr};
    }
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
