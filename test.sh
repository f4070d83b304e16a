#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test. Arguments go to ctest: ./test.sh -L fast
set -euo pipefail
cd "$(dirname "$0")"
source .ci/setup.sh

install_missing "${packages[@]}"
build cpu
say "testing"
ctest --preset cpu --output-junit "$PWD/build/tests.xml" "$@"
