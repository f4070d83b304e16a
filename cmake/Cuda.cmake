# Decides whether the CUDA backend is built: MINIPUZZLE_HAVE_CUDA. AUTO builds it where nvcc and the headers of cuDNN
# and cudnn-frontend are found; ON makes their absence an error.
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
# What every CUDA source is compiled with; warnings are errors here too.
add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>
                    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
                    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>
                    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror,-Wno-missing-field-initializers,-Wno-unused-parameter>")
set(CMAKE_CUDA_STANDARD_REQUIRED OFF)  # else the C++ standard would be asked of nvcc through CMake after all
set(MINIPUZZLE_HAVE_CUDA ON)
