# COIN-OR CBC, the solver of mixed-integer programs: target Cbc::Cbc. Its static archives are linked, so that the
# program starts where the libraries are not installed. The two LAPACK routines that they call are ours
# (nas/lapack_routines.cpp), so that no BLAS with threads of its own comes along.
find_path(CBC_INCLUDE_DIR Cbc_C_Interface.h PATH_SUFFIXES coin coin-or)
set(CBC_LIBRARIES)
set(CBC_MISSING)
foreach(library CbcSolver Cbc Cgl OsiClp Clp Osi CoinUtils bz2 z)  # each before those it needs
  find_library(CBC_${library}_LIBRARY lib${library}.a)
  if(CBC_${library}_LIBRARY)
    list(APPEND CBC_LIBRARIES ${CBC_${library}_LIBRARY})
  else()
    list(APPEND CBC_MISSING lib${library}.a)
  endif()
endforeach()
if(NOT CBC_INCLUDE_DIR OR CBC_MISSING)
  message(FATAL_ERROR "COIN-OR CBC was not found (missing: ${CBC_MISSING}): install coinor-libcbc-dev, libbz2-dev and \
zlib1g-dev, or set CMAKE_PREFIX_PATH")
endif()
add_library(Cbc::Cbc INTERFACE IMPORTED)
target_include_directories(Cbc::Cbc SYSTEM INTERFACE ${CBC_INCLUDE_DIR})
target_link_libraries(Cbc::Cbc INTERFACE ${CBC_LIBRARIES} Threads::Threads)
