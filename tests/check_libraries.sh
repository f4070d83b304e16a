#!/usr/bin/env bash
# The program must start on a machine without a GPU, a driver, CUDA's libraries or COIN-OR's: it may name none of them,
# nor a BLAS or LAPACK.
#     tests/check_libraries.sh PROGRAM
set -euo pipefail
program=$1
if ldd "$program" | grep -E 'libcuda|libcublas|libcudnn|libnccl|libnv'; then
    echo "$program names libraries of CUDA: they must be opened at first use" >&2
    exit 1
fi
if ldd "$program" | grep -iE 'libCbc|libCgl|libClp|libOsi|libCoin|blas|lapack'; then
    echo "$program names libraries of COIN-OR: their archives must be linked" >&2
    exit 1
fi
"$program" bench ops --device cpu --match '^add ' -q >/dev/null
