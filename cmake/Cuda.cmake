# Decides whether the CUDA backend is built: MINIPUZZLE_HAVE_CUDA. AUTO builds it where nvcc and the headers of
# cuBLAS and cuDNN are found; ON makes their absence an error. Only headers: both libraries are opened at first use.
#
# CMake 3.25 does not know C++20 for nvcc (it silently takes C++17), so the standard is given as an option and
# CMAKE_CUDA_STANDARD stays unset. CUDA::cuda_driver is never linked: the program would not start without a driver.
set(MINIPUZZLE_HAVE_CUDA OFF)
if(MINIPUZZLE_CUDA STREQUAL "OFF")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(MINIPUZZLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "MINIPUZZLE_CUDA is ON, but nvcc was not found: put it on PATH or set CUDACXX")
  endif()
  message(STATUS "nvcc was not found: building for the CPU only")
  return()
endif()

# Hopper's own instructions need 90a; the PTX for 8.0 serves everything else from Ampere on.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-virtual 90a-real CACHE STRING "CUDA architectures")
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

find_path(CUBLAS_INCLUDE_DIR cublasLt.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_path(CUDNN_INCLUDE_DIR cudnn_graph.h HINTS ${CUDAToolkit_INCLUDE_DIRS} $ENV{CUDNN_HOME}/include)
if(NOT CUBLAS_INCLUDE_DIR OR NOT CUDNN_INCLUDE_DIR)
  set(missing "the headers of cuBLAS (cublasLt.h) or cuDNN 9 (cudnn_graph.h) were not found: install libcublas-dev-13-* \
and libcudnn9-dev-cuda-13, or set CUBLAS_INCLUDE_DIR and CUDNN_INCLUDE_DIR")
  if(MINIPUZZLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "MINIPUZZLE_CUDA is ON, but ${missing}")
  endif()
  message(WARNING "Building for the CPU only: ${missing}")
  return()
endif()

# What every CUDA source is compiled with; warnings are errors here too.
add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>
                    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
                    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>
                    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror,-Wno-missing-field-initializers,-Wno-unused-parameter>")
set(CMAKE_CUDA_STANDARD_REQUIRED OFF)  # else the C++ standard would be asked of nvcc through CMake after all
set(MINIPUZZLE_HAVE_CUDA ON)
