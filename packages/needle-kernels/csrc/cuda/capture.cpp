#include "capture.h"

#include <atomic>
#include <thread>

namespace needle::cuda {

namespace {

std::atomic<bool> active{false};
std::thread::id owner;  // of the capture; valid while it is active

}  // namespace

bool capturing() { return active.load(std::memory_order_acquire); }

void begin_capture()
{
    check_not_capturing("recording another graph");
    start_capture();
    owner = std::this_thread::get_id();
    active.store(true, std::memory_order_release);
}

std::unique_ptr<Executable> end_capture()
{
    active.store(false, std::memory_order_release);
    return finish_capture();
}

void check_not_capturing(const char* what)
{
    if (!capturing()) return;
    throw Error(std::string("cuda: not possible while a graph is recorded: got ") + what +
                ": do it before the recording or after a replay");
}

void check_launch(const char* kernel)
{
    if (!capturing() || owner == std::this_thread::get_id()) return;
    throw Error(std::string("cuda: another thread records a graph: got a launch of ") + kernel +
                ": use the device from one thread while it does");
}

}  // namespace needle::cuda
