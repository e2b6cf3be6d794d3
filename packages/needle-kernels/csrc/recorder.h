// Recorders keep what launch() did: which kernel, when, on which thread, with which operands.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "call.h"

namespace needle {

// One call of one kernel. Holds copies only, so it outlives the arrays.
struct TraceEvent {
    struct Operand {
        DType dtype;
        int32_t rank;  // -1: an absent optional operand
    };
    int device;
    int kernel;
    int thread;        // 1, 2, ... in the order in which threads first ran a recorded kernel
    int64_t start;     // ns on clock_now()
    int64_t duration;  // ns
    std::vector<Operand> operands;
    std::vector<int64_t> extents;  // of each operand: its shape, then its strides
    std::vector<double> scalars;
};

std::string describe_operands(const TraceEvent& event);  // "float32(2,3) none float32(3)"

int64_t clock_now();  // ns on a clock that never goes back
int thread_number();  // of the calling thread

// Several may run at once, also on several threads: each gets every call of the whole process.
class Recorder {
public:
    Recorder() = default;
    ~Recorder() { stop(); }
    Recorder(const Recorder&) = delete;
    Recorder& operator=(const Recorder&) = delete;

    void start();
    void stop();
    std::vector<TraceEvent> take();  // returns what was recorded and forgets it

private:
    friend void record(int device, int64_t start, int64_t duration, const Call& call);
    std::vector<TraceEvent> events_;
    bool running_ = false;
};

bool recording();  // whether any recorder runs
void record(int device, int64_t start, int64_t duration, const Call& call);

Recorder& default_recorder();  // the one of set_tracing() and trace()

}  // namespace needle
