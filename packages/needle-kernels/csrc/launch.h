// The single launch point: every kernel of every device is entered here and nowhere else.
#pragma once

#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "kernels.h"

namespace needle {

enum class Device : int { cpu, reference, cuda, count };

constexpr int64_t too_many_elements = int64_t{1} << 60;  // below it, bytes fit into int64_t
constexpr int device_count = static_cast<int>(Device::count);
inline constexpr const char* device_names[] = {"cpu", "reference", "cuda"};

// What a device offers besides kernels: memory, and the stream its kernels run on.
class Backend {
public:
    virtual ~Backend() = default;
    virtual void* allocate(int64_t bytes) = 0;  // nullptr when there is none left
    virtual void release(void* data, int64_t bytes) = 0;
    virtual void* stream() { return nullptr; }
    virtual std::string out_of_memory(int64_t bytes) = 0;  // the text of OutOfMemory
};

// The CPU's unless another was set.
Backend& device_backend(Device device);
void set_device_backend(Device device, Backend* backend);

// The table that launch() uses for a device. Set before the first launch, and when the target
// changes.
Table& device_table(Device device);

// The device cannot give the memory that a call needs; what() says what was asked, held and free.
class OutOfMemory : public std::bad_alloc {
public:
    explicit OutOfMemory(std::string text) : text_(std::move(text)) {}
    // For too_many_elements or more.
    explicit OutOfMemory(Device device)
        : text_(std::string(device_names[static_cast<int>(device)]) +
                ": out of memory: asked for 2^60 elements or more")
    {
    }
    const char* what() const noexcept override { return text_.c_str(); }

private:
    std::string text_;
};

// Throws OutOfMemory when there is no memory for the kernel's workspace, std::runtime_error when
// the device has no such kernel; nothing has been written then.
void launch(Device device, int kernel, Call& call);

// How often each kernel ran: always counted.
uint64_t call_count(Device device, int kernel);
void reset_call_counts();

}  // namespace needle
