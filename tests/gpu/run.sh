#!/usr/bin/env bash
# The CUDA steps on a GPU, in phases of at most nine minutes each; a second call goes on where the
# first one stopped.
#
#   tests/gpu/run.sh                all phases that are not done
#   tests/gpu/run.sh 4              those of chapter 4 that are not done, with build and collect
#   tests/gpu/run.sh PHASE...       these, done or not
#   tests/gpu/run.sh --clean        forgets what is done
#
# A phase with a number is there for each chapter: conformance3, conformance4, conformance5.
#
#   build         the tilewise command with the CUDA steps, and the programs of this folder
#                 (TILEWISE_GPU_BIN=DIR: they are there already)
#   conformance?  tests/gpu/problems.txt (float32), problems16.txt and problems_general.txt, judged:
#                 outputs poisoned, guards around all, 250 repeats that take turns on a stream of
#                 their own, as a captured graph, on the default stream
#   bits          where softmax is exact, the emulator's bits
#   sanitizer?    compute-sanitizer: memcheck and racecheck
#   memory        bytes beside the tensors at N = 512 to 16384, and their slope
#   traffic?      bytes at the second-level cache and in HBM by ncu, beside the papers' formula and,
#                 from the emulator, the same count; then, of a call that fills the GPU, how busy
#                 tensor cores are, and the passes over the banks of shared memory
#   benchmark?    seconds by CUDA events, beside PyTorch's attention: its math backend (naive) for
#                 chapter 3, its flash backend for chapter 4; chapter 5 beside 4d
#   speed         the shipped kernels beside PyTorch's backends, through the C interface, twice
#                 (tests/gpu/speed.py: docs/results/speed-NAME.json); some ten minutes each time
#   witness       whether ptxas leaves the registers alone that a wgmma under way reads
#                 (tests/gpu/witness.cu), and what tools/check_sass.py sees in the machine code
#   timeline      who does what when, by clocks in the kernels: docs/results/timeline-STEP.json, .svg
#   collect       all of it as one JSON: docs/results/gpu-NAME.json
set -u
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit
state=build/gpu-results
bin=${TILEWISE_GPU_BIN:-build/gpu/bin}
[ "${1:-}" = --clean ] && rm -rf "$state" && exit 0
mkdir -p "$state"

steps3=stage.3a_thread_a_row,stage.3b_paper_loops,stage.3c_warp_tiles,stage.3d_backward
steps4=stage.4a_swapped_loops,stage.4b_tensor_cores,stage.4c_split_queries,stage.4d_causal_blocks
steps4+=,stage.4e_split_keys,stage.4f_backward,cuda.sm80
steps5=stage.5a_tma_wgmma,stage.5b_producer_consumers,stage.5c_ping_pong,stage.5d_next_scores
steps5+=,cuda.sm90
traced_steps="4d_causal_blocks 5a_tma_wgmma 5b_producer_consumers 5c_ping_pong 5d_next_scores"
steps_of() { local name=steps$1 && echo "${!name}"; }

build() {
  [ -n "${TILEWISE_GPU_BIN:-}" ] && return
  cmake --preset gpu && cmake --build --preset gpu \
    --target tilewise tilewise_gpu_memory tilewise_gpu_benchmark tilewise_gpu_witness \
    tilewise_gpu_timeline || return
  # The C interface for Python's ctypes: the libraries alone, shared.
  cmake -B build/gpu-library -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DTILEWISE_LIBRARY_ONLY=ON -DTILEWISE_CUDA=ON && cmake --build build/gpu-library
}

# A step refuses what is not its dtype; the 16-bit problems are nothing to chapter 3.
conformance() {
  local problems=(@tests/gpu/problems.txt)
  [ "$1" != 3 ] && problems+=(@tests/gpu/problems16.txt @tests/gpu/problems_general.txt)
  "$bin/tilewise" check "${problems[@]}" --impl "$(steps_of "$1")" --repeats 250 \
    --data tests/data --json >"$state/conformance$1.json"
}

bits() { python3 tests/gpu/bits.py "$bin/tilewise" >"$state/bits.json"; }

sanitizer() {
  local tool fine=0
  local problems=("fwd b2 sq250 sk127 h3 d64" "fwd s129 hq4 hk2 d33 causal"
    "fwd sq90 sk40 h1 d128 causal" "bwd sq130 sk97 hq4 hk2 d64 causal")
  [ "$1" != 3 ] && problems=("fwd sq150 sk127 h2 d64" "fwd b2 sq150 sk127 h2 d64 f16"
    "fwd s129 hq4 hk2 d40 bf16 causal" "fwd sq90 sk40 h1 d128 f16 causal"
    "fwd b2 sq1 sk700 hq8 hk2 d128 f16" "bwd sq130 sk97 hq4 hk2 d64 f16 causal"
    "bwd s70 h1 d128 bf16" @tests/gpu/problems_general.txt)
  for tool in memcheck racecheck; do
    compute-sanitizer --tool $tool --error-exitcode 9 "$bin/tilewise" check --repeats 0 \
      "${problems[@]}" --impl "$(steps_of "$1")" >"$state/$tool$1.log" 2>&1 || fine=1
    tail -1 "$state/$tool$1.log"
  done
  return $fine
}

memory() { "$bin/tilewise_gpu_memory" >"$state/memory.json"; }

# The problem whose bytes are counted, small enough for the emulator; and one that fills the GPU.
small_problem_of() {
  case $1 in
    *3d_*) echo "bwd s1024 h4 d64" ;;
    *3?_* | *4a_*) echo "fwd s1024 h4 d64" ;;
    *4e_*) echo "fwd sq1 sk4096 hq32 hk8 d128 f16" ;;
    *4f_*) echo "bwd s1024 h4 d64 f16" ;;
    *) echo "fwd s1024 h4 d64 f16" ;;
  esac
}
large_problem_of() {
  case $1 in
    *3d_*) echo "bwd s2048 h16 d64" ;;
    *3?_* | *4a_*) echo "fwd s4096 h16 d64" ;;
    *4e_*) echo "fwd b4 sq1 sk8192 hq32 hk8 d128 f16" ;;
    *4f_*) echo "bwd b2 s4096 h16 d128 f16" ;;
    *) echo "fwd b2 s4096 h16 d128 f16" ;;
  esac
}
bytes_metrics=dram__bytes_read.sum,dram__bytes_write.sum,lts__t_sectors_srcunit_tex_op_read.sum
bytes_metrics+=,lts__t_sectors_srcunit_tex_op_write.sum,l1tex__data_bank_conflicts_pipe_lsu.sum
bytes_metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed
bytes_metrics+=,gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed
busy_metrics=sm__throughput.avg.pct_of_peak_sustained_elapsed
busy_metrics+=,gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed
busy_metrics+=,sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active
more_busy_metrics=$busy_metrics,sm__inst_executed_pipe_tensor.sum
more_busy_metrics+=,memory_l1_wavefronts_shared,memory_l1_wavefronts_shared_ideal
more_busy_metrics+=,sm__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_ldsm.sum

# joined OUTPUT NAME...: lists as one.
joined() {
  (cd "$state" && python3 -c 'import json, sys
print(json.dumps(sum((json.load(open(p + ".json")) for p in sys.argv[2:]), []), indent=1))' \
    "$@" >"$1.json")
}

# profile STEP PROBLEM METRICS: one call, each kernel of it as often as the metrics need.
profile() {
  ncu --clock-control none --csv --print-units base --metrics "$3" \
    "$bin/tilewise" run "$2" --impl "$1" --out "$state/profiled" 2>&1
}

traffic() {
  local step metrics fine=0 emulated=()
  for step in $(steps_of "$1" | tr , ' '); do
    profile "$step" "$(small_problem_of "$step")" $bytes_metrics >"$state/ncu-$step.csv" || fine=1
    # Not every ncu knows all of the metrics: then fewer.
    for metrics in $more_busy_metrics $busy_metrics; do
      large_problem_of "$step" >"$state/busy-$step.csv"
      profile "$step" "$(large_problem_of "$step")" $metrics >>"$state/busy-$step.csv" && break
    done
    "$bin/tilewise" count "$(small_problem_of "$step")" --impl "emulated.${step#*.}" --json \
      >"$state/emulated-$step.json" || fine=1
    emulated+=("emulated-$step")
  done
  rm -rf "$state/profiled"
  joined "emulated$1" "${emulated[@]}" || fine=1
  return $fine
}

# timed OUTPUT STEPS PROBLEM... times our steps, peer OUTPUT BACKEND PROBLEM... PyTorch's attention.
timed() { "$bin/tilewise_gpu_benchmark" "${@:2}" >"$state/$1.json"; }
peer() { python3 tests/gpu/torch_attention.py "${@:2}" >"$state/$1.json"; }

forward32=("fwd s1024 h16 d64" "fwd s4096 h16 d64" "fwd s4096 h16 d64 causal" "fwd s4096 h16 d128")
backward32=("bwd s1024 h16 d64" "bwd s2048 h16 d64 causal")

# The papers' sizes: 16384 tokens in all, heads of d that make 2048 columns.
papers_problems() {
  local n d mask
  for d in ${2:-64 128}; do
    for mask in "" " causal"; do
      for n in 1024 4096 16384; do
        echo "$1 b$((16384 / n)) s$n h$((2048 / d)) d$d f16$mask"
      done
    done
  done
}
decode_problems() {
  local batch keys
  for batch in 1 16; do
    for keys in 4096 16384 65536; do echo "fwd b$batch sq1 sk$keys hq32 hk8 d128 f16"; done
  done
}

benchmark() {
  if [ "$1" = 3 ]; then
    timed fwd3 3a,3b,3c "${forward32[@]}" && timed bwd3 3d "${backward32[@]}" &&
      joined benchmark3 fwd3 bwd3 && peer naive math "${forward32[@]}" "${backward32[@]}"
    return
  fi
  local forward backward decode
  mapfile -t forward < <(papers_problems fwd "64 128 256")
  if [ "$1" = 5 ]; then # with where the ladder comes from, in the same run
    timed benchmark5 4d,cuda.sm80,5a,5b,5c,5d,cuda.sm90 "${forward[@]}"
    return
  fi
  mapfile -t backward < <(papers_problems bwd)
  mapfile -t decode < <(decode_problems)
  timed fwd4a 4a "${forward32[@]}" && timed fwd4 4b,4c,4d,cuda.sm80 "${forward[@]}" &&
    timed bwd4 4f "${backward[@]}" && timed decode4 4d,4e "${decode[@]}" &&
    joined benchmark4 fwd4a fwd4 bwd4 decode4 &&
    peer flash flash "${forward[@]}" "${backward[@]}" "${decode[@]}"
}

speed() {
  local library=build/gpu-library/cuda/api/libtilewise_cuda.so call
  [ -n "${TILEWISE_GPU_BIN:-}" ] && library=$bin/libtilewise_cuda.so
  for call in 1 2; do
    python3 tests/gpu/speed.py --library "$library" --out "$state/speed$call.json" || return
  done
}

witness() {
  "$bin/tilewise_gpu_witness" >"$state/witness.txt" || return
  tail -1 "$state/witness.txt"
  local kernels=build/gpu/cuda/kernels/gpu/libtilewise_gpu_kernels.a
  [ -f $kernels ] && python3 tools/check_sass.py --find >/dev/null || return 0
  python3 tools/check_sass.py $kernels "$bin/tilewise_gpu_witness" --arch sm_90a \
    --rules cuda/kernels/sass.txt >"$state/sass.txt"
}

# Of a block that begins when others are under way already, a part that one can read.
timeline_problem="fwd b2 s2048 h16 d128 bf16"
timeline() {
  local step json rows
  for step in $traced_steps; do
    json=docs/results/timeline-$step.json
    rows=warpgroups
    case $step in 4*) rows=warps ;; esac
    "$bin/tilewise_gpu_timeline" "$step" "$timeline_problem" "$json" 300 &&
      python3 tools/draw_timeline.py "$json" --rows $rows --from 10000 --to 25000 || return
  done
}

collect() { python3 tests/gpu/collect.py "$state" docs/results; }

phases_of() { echo "conformance$1 sanitizer$1 traffic$1 benchmark$1"; }
case ${*:-all} in
  all)
    wanted="build bits memory $(phases_of 3) $(phases_of 4) $(phases_of 5) witness timeline speed"
    wanted+=" collect"
    ;;
  3 | 4 | 5) wanted="build $(phases_of "$1") collect" ;;
  *) wanted="$*" ;;
esac
named=0
[ "${*:-all}" = "$wanted" ] && named=1 # phases by their names: done or not
result=0
for phase in $wanted; do
  [ $named = 0 ] && [ "$phase" != collect ] && [ -e "$state/$phase.done" ] && continue
  begin=$SECONDS
  if "${phase%[345]}" "${phase: -1}"; then
    : >"$state/$phase.done"
    echo "$phase: done in $((SECONDS - begin)) s"
  else
    result=1
    echo "$phase: FAILED after $((SECONDS - begin)) s, see $state"
  fi
done
exit $result
