#!/usr/bin/env bash
# Runs every case for a GPU and ends with "N passed, N failed". --sanitize runs the cases on small shapes under
# compute-sanitizer too (memcheck and racecheck). A missing GPU is a failure here.
#     tests/gpu/run.sh [--sanitize] [FOLDER_OF_THE_BUILD]
set -u
cd "$(dirname "$0")/../.."
sanitize=no
[ "${1:-}" = --sanitize ] && { sanitize=yes; shift; }
tests="${1:-build}/tests/tests_gpu"
[ -x "$tests" ] || { echo "$tests is not there: build with CUDA first (cmake --preset cuda)" >&2; exit 2; }
export MINIPUZZLE_REQUIRE_GPU=1

passed=0 failed=0
# count LABEL COMMAND...: adds what a run of the test program says of itself.
count() {
    local label=$1 log status
    shift
    log=$(mktemp)
    "$@" >"$log" 2>&1
    status=$?
    local ok bad
    ok=$(sed -nE 's/^All tests passed \(.* in ([0-9]+) test cases?\)$/\1/p; s/^test cases: *[0-9]+ *\| *([0-9]+) passed.*/\1/p' "$log" | tail -1)
    bad=$(sed -nE 's/^test cases:.*\| *([0-9]+) failed.*/\1/p' "$log" | tail -1)
    [ "$status" != 0 ] && [ "${bad:-0}" = 0 ] && bad=1
    if [ "${bad:-0}" != 0 ] || [ -z "$ok" ]; then cat "$log"; fi
    echo "$label: ${ok:-0} passed, ${bad:-0} failed"
    passed=$((passed + ${ok:-0})) failed=$((failed + ${bad:-0}))
    [ -z "$ok$bad" ] && failed=$((failed + 1))
    rm -f "$log"
}

count "gpu" "$tests" "[gpu]"
if [ "$sanitize" = yes ]; then
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on PATH" >&2; exit 2; }
    count "memcheck" compute-sanitizer --tool memcheck --error-exitcode 9 "$tests" "[small],[memcheck]"
    # racecheck does not follow barriers that count bytes, so the cases whose kernels are fed by bulk copies ([memcheck]) are left out, and it
    # reports cuBLAS's own kernels (nvjet); left uninstrumented they crash under it, so their reports are dropped.
    races=$(mktemp)
    count "racecheck" compute-sanitizer --tool racecheck --log-file "$races" "$tests" "[small]"
    ours=$(grep -E "Race reported" "$races" | grep -vc nvjet)
    echo "racecheck: $(grep -c "Race reported" "$races") races reported, $ours of them outside cuBLAS"
    [ "$ours" = 0 ] || { grep -A3 "Race reported" "$races"; failed=$((failed + 1)); }
    grep -q "RACECHECK SUMMARY" "$races" || { cat "$races"; failed=$((failed + 1)); }
    rm -f "$races"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
