// The queue of the CPU's kernels: a short line of calls that a launch leaves for idle threads.
//
// While Python prepares the next call, the threads that have nothing else to do run the last ones.
// Calls run one at a time and in order, so a block that is freed can be handed out again at once:
// whatever is queued later runs later. Only who looks at memory without a kernel must wait first:
// for Storage::last_call.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace needle {

// Runs the call, or queues a copy of it. It is done when this returns if somebody outside sees an
// operand's memory, or if it needs every thread: large ones and products do.
void run_in_turn(const Entry& entry, const Call& call);

// The number of the call that was queued last. Numbers only grow.
uint64_t newest_call();

// How many calls are queued and not done.
uint64_t waiting_calls();

// Returns when this call and all before it are done, and helps until then.
void finish(uint64_t number);
void finish_all();

}  // namespace needle
