// Integer arithmetic that wraps around, on every device.
#pragma once

#include <cstdint>

namespace needle {

// The type to calculate in: only unsigned types define what happens beyond the range.
template <class T>
struct WrappingOf {
    using type = T;
};
template <>
struct WrappingOf<int32_t> {
    using type = uint32_t;
};
template <>
struct WrappingOf<int64_t> {
    using type = uint64_t;
};
template <class T>
using Wrapping = typename WrappingOf<T>::type;

}  // namespace needle
