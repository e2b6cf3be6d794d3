# The CUDA backend, a module of its own: needle._kernels.cuda (docs/cuda.md).
set(NEEDLE_CUDA off CACHE STRING "off, on, auto (on where there is an nvcc), or emulate (for tests)")
# Turing to Hopper, and PTX for what comes after.
set(NEEDLE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90 CACHE STRING
  "What nvcc compiles for, as in CMAKE_CUDA_ARCHITECTURES")

if(NOT NEEDLE_CUDA MATCHES "^(off|on|auto|emulate)$")
  message(FATAL_ERROR "NEEDLE_CUDA: got ${NEEDLE_CUDA}: need off, on, auto or emulate")
endif()
if(NEEDLE_CUDA MATCHES "^(on|auto)$")
  include(CheckLanguage)
  set(CMAKE_CUDA_ARCHITECTURES ${NEEDLE_CUDA_ARCHITECTURES})
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND NEEDLE_CUDA STREQUAL "on")
    message(FATAL_ERROR "NEEDLE_CUDA=on: no CUDA compiler found: install the CUDA toolkit (12 or "
      "13), put nvcc on PATH or name it in CUDACXX, or build with NEEDLE_CUDA=off")
  endif()
  message(STATUS "NEEDLE_CUDA=${NEEDLE_CUDA}: compiler: ${CMAKE_CUDA_COMPILER}")
endif()
if(NEEDLE_CUDA STREQUAL "off" OR (NEEDLE_CUDA STREQUAL "auto" AND NOT CMAKE_CUDA_COMPILER))
  return()
endif()

set(cuda_sources elementwise shape reduce softmax index images optimize normalize matmul recurrent
  conv pool)
list(TRANSFORM cuda_sources PREPEND csrc/cuda/)
list(TRANSFORM cuda_sources APPEND .cu)

if(NEEDLE_CUDA STREQUAL "emulate")
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  list(APPEND cuda_sources csrc/cuda/emulate.cpp csrc/cuda/runtime_emulated.cpp)
else()
  enable_language(CUDA)
  list(APPEND cuda_sources csrc/cuda/runtime.cu)
endif()

list(APPEND cuda_sources csrc/cuda/bindings.cpp csrc/cuda/capture.cpp csrc/cuda/fault.cpp
  csrc/cuda/graph.cpp csrc/cuda/memory.cpp)

pybind11_add_module(cuda MODULE ${cuda_sources})
target_link_libraries(cuda PRIVATE needle_options)
if(NEEDLE_CUDA STREQUAL "emulate")
  target_compile_definitions(cuda PRIVATE NEEDLE_CUDA_EMULATE)
  target_compile_options(cuda PRIVATE -Wno-unknown-pragmas)  # of nvcc
else()
  # The runtime inside, so that the module loads on machines without CUDA.
  set_target_properties(cuda PROPERTIES CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static)
  target_compile_options(cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3 --Werror=all-warnings
    -Xcompiler=-Wall,-Wextra>)
endif()
install(TARGETS cuda DESTINATION .)
