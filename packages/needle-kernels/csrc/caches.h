// What the kernels know of the processor's caches. Each core is taken to have its own second level.
#pragma once

#include <cstdint>

namespace needle {

// What is set here was measured on Intel's Xeons (docs/performance.md) and holds where nothing else
// is known. Distances are in bytes, 0 where the processor does better by itself.
struct Caches {
    int64_t second_bytes = 1 << 20;  // of level 2
    // How far ahead memory is asked for: by a long read in order; where floats become doubles, if
    // that is farther; by the only operand of a kernel whose results go past the caches;
    int64_t read_ahead = 4096;
    int64_t widening_ahead = 0;
    int64_t operand_ahead = 4096;
    // by operands with gaps between their rows; by those with gaps between their items; for results
    // that are written some rows at a time.
    int64_t gap_ahead = 4096;
    int64_t spaced_ahead = 2048;
    int64_t results_ahead = 4096;
    bool ahead_into_second = true;  // whether operands are asked for there, and not into level 1
    bool large_third = true;        // whether tens of MB stay in the third level
    bool in_order = false;  // rows from memory are faster one after the other than side by side
    bool in_turn = false;   // long reads are faster at two places in turn
    bool sums_turn_often = false;  // and those that are added up by 1 KB at a time
};

// A result of so many bytes is beyond the caches by the time that it is read.
constexpr int64_t beyond_caches = int64_t{24} << 20;

// How far ahead to ask, in bytes, for what only masked loads read: a Zen 5 does not foresee it.
constexpr int64_t masked_ahead = 4096;

// The generation of AMD's cores: 3 (and those before), 4, 5 (and those after); 0: another maker's.
int zen();

// Found out once; where the system does not say: 1 MB.
const Caches& caches();
void set_in_turn(bool on);  // while no kernel runs

}  // namespace needle
