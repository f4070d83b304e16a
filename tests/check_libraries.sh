#!/usr/bin/env bash
# The program must start on a machine without a GPU, a driver or CUDA's libraries: it may name none of them.
#     tests/check_libraries.sh PROGRAM
set -euo pipefail
program=$1
if ldd "$program" | grep -E 'libcuda|libcublas|libcudnn|libnccl|libnv'; then
    echo "$program names libraries of CUDA: they must be opened at first use" >&2
    exit 1
fi
"$program" bench ops --device cpu --match '^add ' -q >/dev/null
