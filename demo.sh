#!/usr/bin/env bash
# Installs what is missing, builds, and compresses the demo model: score, search, prune, distill, report.
set -euo pipefail
cd "$(dirname "$0")"
source .ci/setup.sh

install_missing "${packages[@]}"
build release minipuzzle
say "compressing configs/demo/model to 84 % of its memory; everything goes to demo-out/"
started=$SECONDS
build/minipuzzle run configs/recipes/demo.yaml --resume
say "done in $((SECONDS - started)) s: open demo-out/report.html; the student is demo-out/distilled, the numbers are in demo-out/summary.json"
