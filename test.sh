#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test. Arguments go to ctest: ./test.sh -L fast
set -euo pipefail
cd "$(dirname "$0")"
source .ci/setup.sh

install_missing "${packages[@]}"
build release
say "testing"
ctest --preset release --output-junit "$PWD/build/tests.xml" "$@"
