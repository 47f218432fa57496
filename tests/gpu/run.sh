#!/usr/bin/env bash
# The CUDA steps on a GPU, in phases of at most nine minutes each; a second call goes on where the
# first one stopped.
#
#   tests/gpu/run.sh                all phases that are not done
#   tests/gpu/run.sh PHASE...       these, done or not
#   tests/gpu/run.sh --clean        forgets what is done
#
#   build        the tilewise command with the CUDA steps (TILEWISE_GPU_BIN=DIR: it is there already)
#   conformance  tests/gpu/problems.txt, judged: outputs poisoned, guards around all, 250 repeats
#                that take turns on a stream of their own, as a captured graph, on the default stream
#   bits         where softmax is exact, the emulator's bits
#   sanitizer    compute-sanitizer: memcheck and racecheck
#   memory       bytes beside the tensors at N = 512 to 16384, and their slope
#   traffic      bytes at the second-level cache and in HBM by ncu, beside the papers' formula and,
#                from the emulator, the same count
#   benchmark    seconds by CUDA events, beside naive attention (PyTorch's math backend)
#   collect      all of it as one JSON: docs/results/gpu-NAME.json
set -u
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
state=build/gpu-results
bin=${TILEWISE_GPU_BIN:-build/gpu/bin}
[ "${1:-}" = --clean ] && rm -rf "$state" && exit 0
mkdir -p "$state"

steps=stage.3a_thread_a_row,stage.3b_paper_loops,stage.3c_warp_tiles,stage.3d_backward
problems() { grep -v '^#' tests/gpu/problems.txt; }

build() {
  [ -n "${TILEWISE_GPU_BIN:-}" ] && return
  cmake --preset gpu && cmake --build --preset gpu --target tilewise tilewise_gpu_memory
}

conformance() {
  "$bin/tilewise" check @tests/gpu/problems.txt --impl $steps --repeats 250 --data tests/data \
    --json >"$state/conformance.json"
}

bits() { python3 tests/gpu/bits.py "$bin/tilewise" >"$state/bits.json"; }

sanitizer() {
  local tool fine=0
  for tool in memcheck racecheck; do
    compute-sanitizer --tool $tool --error-exitcode 9 "$bin/tilewise" check --repeats 0 \
      "fwd b2 sq250 sk127 h3 d64" "fwd s129 hq4 hk2 d33 causal" "fwd sq90 sk40 h1 d128 causal" \
      "bwd sq130 sk97 hq4 hk2 d64 causal" --impl $steps >"$state/$tool.log" 2>&1 || fine=1
    tail -1 "$state/$tool.log"
  done
  return $fine
}

memory() { "$bin/tilewise_gpu_memory" >"$state/memory.json"; }

traffic() {
  local step fine=0
  for step in ${steps//,/ }; do
    local pass=fwd
    [ "$step" = stage.3d_backward ] && pass=bwd
    ncu --clock-control none --csv --print-units base --metrics \
dram__bytes_read.sum,dram__bytes_write.sum,lts__t_sectors_srcunit_tex_op_read.sum,\
lts__t_sectors_srcunit_tex_op_write.sum,l1tex__data_bank_conflicts_pipe_lsu.sum,\
sm__throughput.avg.pct_of_peak_sustained_elapsed,\
gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed \
      "$bin/tilewise" check "$pass s1024 h4 d64" --impl "$step" --repeats 0 \
      >"$state/ncu-$step.csv" 2>&1 || fine=1
  done
  "$bin/tilewise" count "fwd s1024 h4 d64" --impl emulated.3a,emulated.3b,emulated.3c --json \
    >"$state/emulated-fwd.json" || fine=1
  "$bin/tilewise" count "bwd s1024 h4 d64" --impl emulated.3d --json >"$state/emulated-bwd.json" ||
    fine=1
  python3 -c 'import json, sys
print(json.dumps(sum((json.load(open(p)) for p in sys.argv[1:]), [])))' \
    "$state/emulated-fwd.json" "$state/emulated-bwd.json" >"$state/emulated.json"
  return $fine
}

benchmark() {
  "$bin/tilewise" bench "fwd s1024 h16 d64" "fwd s4096 h16 d64" "fwd s4096 h16 d64 causal" \
    "fwd s4096 h16 d128" --impl ${steps%,*} --seconds 1 --json >"$state/bench-fwd.json" &&
    "$bin/tilewise" bench "bwd s1024 h16 d64" "bwd s2048 h16 d64 causal" \
      --impl stage.3d_backward --seconds 1 --json >"$state/bench-bwd.json" &&
    python3 tests/gpu/naive.py fwd:1,16,1024,64,0 fwd:1,16,4096,64,0 fwd:1,16,4096,64,1 \
      fwd:1,16,4096,128,0 bwd:1,16,1024,64,0 bwd:1,16,2048,64,1 >"$state/naive.json"
}

collect() { python3 tests/gpu/collect.py "$state" docs/results; }

phases=(build conformance bits sanitizer memory traffic benchmark collect)
wanted=("${@:-}")
[ -n "${wanted[0]}" ] || wanted=("${phases[@]}")
result=0
for phase in "${wanted[@]}"; do
  [ $# -eq 0 ] && [ -e "$state/$phase.done" ] && continue
  begin=$SECONDS
  if "$phase"; then
    : >"$state/$phase.done"
    echo "$phase: done in $((SECONDS - begin)) s"
  else
    result=1
    echo "$phase: FAILED after $((SECONDS - begin)) s, see $state"
  fi
done
exit $result
