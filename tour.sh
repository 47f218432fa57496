#!/usr/bin/env bash
# The tour: every implementation that this machine can run, on made and on real tensors, judged
# against float64. Installs what is missing, builds, runs, and writes build/tour/report.html.
#
#   ./tour.sh               under two minutes, once built
#   ./tour.sh --quick       a shorter one, 20 seconds
#   ./tour.sh --only NAME   only what is called NAME: a chapter, a step, or "mine"
#
# TILEWISE_NO_INSTALL=1 installs nothing and prints the line that would.
set -eu
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
. tools/setup.sh

case "${1:-}" in
  -h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' tour.sh
    exit 0
    ;;
esac

setup build plot
# Kernels for a GPU are compiled where there is one to run them.
gpu=OFF
if command -v nvcc >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then gpu=ON; fi
configure release -DTILEWISE_CUDA=$gpu
build release tilewise
exec build/release/bin/tilewise tour "$@"
