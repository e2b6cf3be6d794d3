// The CPU targets: the same sources compiled for several instruction sets, chosen at run time.
#pragma once

#include "kernels.h"
#include "peak.h"

namespace needle {

namespace scalar {
Table make_table();
PeakLoops peak_loops();
}  // namespace scalar
namespace avx2 {
Table make_table();
PeakLoops peak_loops();
}  // namespace avx2
namespace avx512 {
Table make_table();
PeakLoops peak_loops();
}  // namespace avx512

struct Target {
    const char* name;
    bool (*supported)();
    Table (*make_table)();
    PeakLoops (*peak_loops)();
};

// From the plainest to the widest; those not compiled for this architecture are absent.
const Target* targets();
int target_count();

// The widest target that this processor runs and that the cap (NEEDLE_ISA, or null) allows.
// An unknown cap returns -1.
int best_target(const char* cap);
int find_target(const char* name);

}  // namespace needle
