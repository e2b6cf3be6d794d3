#include "fault.h"

#include <string>

#include "../kernels.h"

namespace needle::cuda {

void check_fault()
{
    Fault* fault = device_fault();
    if (fault->found == 0) return;
    Fault wrong = *fault;
    fault->found = 0;
    throw IdError(std::string(kernel_names[wrong.kernel]) + ": id is out of range: got " +
                  std::to_string(wrong.id) + ": need 0 <= id < " + std::to_string(wrong.limit));
}

}  // namespace needle::cuda
