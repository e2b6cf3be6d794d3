#include "emulate.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

namespace needle::emulation {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

enum class State { ready, at_warp_barrier, at_block_barrier, done };

constexpr size_t stack_bytes = 128 * 1024;

struct Copy {
    float* shared;
    const float* global;
    int count;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    State state = State::done;
    uint64_t offered = 0;                     // to the other lanes of its warp
    std::deque<std::vector<Copy>> copies{1};  // groups that are under way; the last is open
};

std::vector<std::unique_ptr<Fiber>> fibers;  // made once, used by every block
std::vector<char> shared;
ucontext_t scheduler;
const std::function<void()>* body_now;
int current;
int thread_count;

[[noreturn]] void fail(const char* barrier)
{
    std::fprintf(stderr,
                 "CUDA emulation: %s in block (%u, %u, %u): some threads wait at it, and others "
                 "have ended or wait elsewhere\n",
                 barrier, block_index.x, block_index.y, block_index.z);
    std::abort();
}

void enter()
{
    (*body_now)();
    fibers[static_cast<size_t>(current)]->state = State::done;
    swapcontext(&fibers[static_cast<size_t>(current)]->context, &scheduler);
}

void start(Fiber& fiber)
{
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
    fiber.state = State::ready;
    fiber.copies.assign(1, {});
}

void resume(int thread)
{
    current = thread;
    unsigned t = static_cast<unsigned>(thread);
    thread_index =
        dim3(t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y));
    swapcontext(&scheduler, &fibers[static_cast<size_t>(thread)]->context);
}

void wait(State state)
{
    Fiber& self = *fibers[static_cast<size_t>(current)];
    self.state = state;
    swapcontext(&self.context, &scheduler);
}

// Runs the lanes of a warp until all have ended or wait at the block's barrier.
void run_warp(int first, int last)
{
    for (;;) {
        int at_warp = 0, at_block = 0, done = 0;
        for (int i = first; i < last; ++i) {
            Fiber& fiber = *fibers[static_cast<size_t>(i)];
            if (fiber.state == State::ready) resume(i);
            at_warp += fiber.state == State::at_warp_barrier;
            at_block += fiber.state == State::at_block_barrier;
            done += fiber.state == State::done;
        }
        if (at_warp == 0) return;
        if (at_warp != last - first) fail("a warp's barrier or shuffle");
        for (int i = first; i < last; ++i) fibers[static_cast<size_t>(i)]->state = State::ready;
    }
}

void run_block()
{
    for (int i = 0; i < thread_count; ++i) start(*fibers[static_cast<size_t>(i)]);
    for (;;) {
        for (int first = 0; first < thread_count; first += warpSize)
            run_warp(first, std::min(first + warpSize, thread_count));
        int done = 0;
        for (int i = 0; i < thread_count; ++i)
            done += fibers[static_cast<size_t>(i)]->state == State::done;
        if (done == thread_count) return;
        if (done != 0) fail("__syncthreads");
        for (int i = 0; i < thread_count; ++i) fibers[static_cast<size_t>(i)]->state = State::ready;
    }
}

}  // namespace

bool fits(dim3 grid, dim3 block, size_t shared_bytes)
{
    return grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 && block.z <= 64 &&
           block.x * block.y * block.z <= 1024 && shared_bytes <= 96 * 1024;
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body)
{
    static std::mutex one_at_a_time;  // the fibers and the __shared__ variables are all there is
    std::lock_guard<std::mutex> lock(one_at_a_time);
    grid_size = grid;
    block_size = block;
    body_now = &body;
    thread_count = static_cast<int>(block.x * block.y * block.z);
    while (fibers.size() < static_cast<size_t>(thread_count))
        fibers.push_back(std::make_unique<Fiber>());
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                block_index = dim3(x, y, z);
                shared.assign(shared_bytes, static_cast<char>(0xa5));  // nobody may count on zeros
                run_block();
            }
}

void block_barrier() { wait(State::at_block_barrier); }
void warp_barrier() { wait(State::at_warp_barrier); }
void* dynamic_shared() { return shared.data(); }
int lane() { return current % warpSize; }

namespace {

Fiber& self() { return *fibers[static_cast<size_t>(current)]; }

float as_tf32(uint32_t bits)
{
    bits &= ~0x1fffu;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

}  // namespace

void copy_later(float* target, const float* source, int count)
{
    self().copies.back().push_back({target, source, count});
}

void end_copy_group() { self().copies.emplace_back(); }

void wait_for_copies(int groups)
{
    auto& copies = self().copies;
    while (copies.size() > static_cast<size_t>(groups) + 1) {
        for (const Copy& copy : copies.front())
            for (int i = 0; i < 4; ++i) copy.shared[i] = i < copy.count ? copy.global[i] : 0.0f;
        copies.pop_front();
    }
}

uint32_t round_to_tf32(float x)
{
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (std::isfinite(x)) bits += 0x1000u;
    return bits & ~0x1fffu;
}

void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    struct Lane {
        const uint32_t *a, *b;
    } mine{a, b};
    int first = current - current % warpSize;
    self().offered = reinterpret_cast<uint64_t>(&mine);
    warp_barrier();
    auto lane_at = [&](int i) {
        return reinterpret_cast<const Lane*>(fibers[static_cast<size_t>(first + i)]->offered);
    };
    int group = lane() / 4, t = lane() % 4;
    for (int r = 0; r < 4; ++r) {
        int row = group + r / 2 * 8, column = t * 2 + r % 2;
        for (int k = 0; k < 8; ++k)
            c[r] += as_tf32(lane_at(row % 8 * 4 + k % 4)->a[row / 8 + k / 4 * 2]) *
                    as_tf32(lane_at(column * 4 + k % 4)->b[k / 4]);
    }
    warp_barrier();
}

uint64_t exchange(uint64_t bits, int from)
{
    int self = current, first = self - self % warpSize;
    fibers[static_cast<size_t>(self)]->offered = bits;
    warp_barrier();
    bool there = from >= 0 && from < warpSize && first + from < thread_count;
    uint64_t found = fibers[static_cast<size_t>(there ? first + from : self)]->offered;
    warp_barrier();
    return found;
}

}  // namespace needle::emulation
