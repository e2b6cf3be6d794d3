// What the kernels know of the processor's caches. Each core is taken to have its own second level.
#pragma once

#include <cstdint>

namespace needle {

struct Caches {
    int64_t second_bytes;  // of level 2
    // How far ahead, in bytes, a long read in order should ask for memory; 0 where the processor
    // does that better by itself.
    int64_t read_ahead;
    int64_t widening_ahead;  // the same where floats become doubles, which leaves less time for it
    int64_t operand_ahead;   // the same for an only operand whose results go past the caches
    int64_t gap_ahead;       // the same for operands with gaps between their rows
    bool in_order;           // rows from memory are faster one after the other than side by side
    bool in_turn;            // long reads are faster at two places in turn
    bool sums_turn_often;    // and those that are added up by 1 KB at a time
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
