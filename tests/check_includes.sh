#!/usr/bin/env bash
# Includes run downward only: cli > importance, nas, distill (none includes another) > runtime > kernels.
set -eu
cd "$(dirname "$0")/.."
bad=0
check() {  # FOLDER FORBIDDEN...
    local folder=$1 pattern
    shift
    pattern="#include \"($(IFS='|'; echo "$*"))/"
    if grep -rnE "$pattern" "$folder" --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh'; then bad=1; fi
}
check kernels runtime importance nas distill cli tests
check runtime importance nas distill cli tests
check importance nas distill cli tests
check nas importance distill cli tests
check distill importance nas cli tests
check cli tests
[ "$bad" = 0 ] || { echo "the includes above run upward or sideways" >&2; exit 1; }
