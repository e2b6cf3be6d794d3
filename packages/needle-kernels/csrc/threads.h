// The threads that kernels share: a small pool, made for many short loops.
//
// A loop is cut into numbered pieces that threads claim one by one. The caller claims too, so it
// never waits for a thread that has not woken up: on a busy machine it simply does more itself.
// Which thread runs a piece does not matter to the result; how the loop is cut does, and that
// depends on sizes and num_threads() alone.
#pragma once

#include <cstdint>

namespace needle {

constexpr int most_threads = 1024;

// How many threads the kernel that runs on this thread may use: the same from its first line to its
// last, whatever another thread sets meanwhile.
int num_threads();

int thread_setting();            // what the next kernel will see
void set_thread_setting(int n);  // 1 to most_threads

// By launch() and the queue, before a kernel's first line; returns what it was on this thread.
int begin_kernel(int threads);

// Runs piece(context, i) for every i in [0, count), on up to num_threads() threads; returns when
// all are done. The caller runs piece 0: what a core's cache holds of it serves the next loop.
void run_pieces(int count, void (*piece)(const void* context, int i), const void* context);

constexpr int most_step_pieces = 64;

// Runs piece(context, step, i) for every step in [0, steps) and i in [0, count), count at most
// most_step_pieces; all pieces of a step are done before one of the next begins. A thread takes the
// same piece at every step, so what the piece reads again stays in that core's cache; only the
// pieces of a thread that is not there (asleep, or busy elsewhere) are taken by others. So no step
// waits for a thread to come, and one thread alone finishes too.
void run_steps(int64_t steps, int count, void (*piece)(const void* context, int64_t step, int i),
               const void* context);

// What a thread does that has no piece to run; returns false when there was nothing.
void set_idle_work(bool (*work)());
void announce_work();        // there is idle work: a sleeping thread should wake
bool help();                 // runs one piece of another thread's loop; false when there is none
void wait_a_turn(int turn);  // a moment, longer when `turn` says that the wait is long

}  // namespace needle
