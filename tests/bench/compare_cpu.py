#!/usr/bin/env python3
"""The CPU forward pass against PyTorch and ONNX Runtime, measured in turns.

    python3 tests/bench/compare_cpu.py --quick                   two minutes
    python3 tests/bench/compare_cpu.py --out docs/results        all of it

Builds the library as a shared one and installs the peers into a virtual environment, both in
build/. Then, for each problem and number of threads, A, B, C, A, B, C, ...: every kernel in its
favourite layout, on the same numbers, in one process; after a pause in which all thread pools have
fallen asleep; between two looks at the multiply-add ceiling of its instruction set (a peer's: the
widest there is), because clocks drift; once more where other processes took the processor meanwhile
(/proc/self/task/*/schedstat). A ratio is the median of the ratios within rounds.

Writes cpu-NAME.json and cpu-NAME.svg, and prints the table. Decoding is told apart: PyTorch has its
best of three dtypes, with enable_gqa and with the query heads of a group made into queries.
"""

import argparse
import ctypes
import datetime
import json
import math
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
INDEX_CPU = "https://download.pytorch.org/whl/cpu"  # PyTorch without CUDA's libraries
PACKAGES = ["numpy", "onnx", "onnxruntime", "matplotlib"]


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- what is needed -----------------------------------------------------------------------------

def pip(python, *arguments, check=True):
    return subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", *arguments],
                          check=check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def environment(directory):
    """The virtual environment's Python, with the peers in it."""
    python = directory / "bin" / "python"
    if not python.exists():
        say("making %s" % directory)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    probe = "import numpy, onnx, onnxruntime, matplotlib"
    if subprocess.run([str(python), "-c", probe], stderr=subprocess.DEVNULL).returncode:
        say("installing " + ", ".join(PACKAGES))
        pip(python, "install", *PACKAGES)
    if subprocess.run([str(python), "-c", "import torch"], stderr=subprocess.DEVNULL).returncode:
        say("installing torch without CUDA from %s" % INDEX_CPU)
        small = pip(python, "install", "--retries", "0", "--timeout", "20", "torch",
                    "--index-url", INDEX_CPU, check=False)
        if small.returncode:
            if shutil.disk_usage(directory).free < 12 << 30:
                raise SystemExit("that index was not reached, and torch with CUDA wants 12 GB here")
            say("not reached; installing the package index's torch, with CUDA: 2 GB and minutes")
            pip(python, "install", "torch")
    return python


def build(directory):
    """The library as a user would build it, and the shim beside it."""
    say("building the library in %s" % directory)

    def run(*command):
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit("%s\n%s" % (" ".join(map(str, command)), done.stdout))
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", ROOT, "-B", directory, *generator, "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=ON", "-DTILEWISE_LIBRARY_ONLY=ON")
    run("cmake", "--build", directory)
    library = next(directory.rglob("libtilewise.so"))
    shim = directory / "libcompare_shim.so"
    run(os.environ.get("CXX", "c++"), "-std=c++20", "-O3", "-ffp-contract=fast", "-fPIC", "-shared",
        "-pthread", "-I", ROOT, ROOT / "tests/bench/compare_shim.cpp", ROOT / "tools/ceiling.cpp",
        "-o", shim, library, "-Wl,-rpath," + str(library.parent.resolve()))
    return shim


def why_no_ggml(python):
    """llama.cpp's kernels: only where somebody has built them for this Python."""
    reasons = {}
    for name in ("llama-cpp-python", "ggml-python"):
        done = pip(python, "install", "--only-binary=:all:", "--no-deps", "--dry-run", name,
                   check=False)
        reasons[name] = ("no binary wheel for this Python on the package index" if done.returncode
                         else "there is a wheel, which this script does not know how to time")
    return reasons


# ---- the machine --------------------------------------------------------------------------------

def machine():
    fields = {}
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return {"cpu": fields.get("model name", platform.processor()),
            "family_model": [fields.get("cpu family"), fields.get("model")],
            "cores": os.cpu_count(), "system": platform.platform(),
            "instruction_sets": [word for word in fields.get("flags", "").split()
                                 if re.match("(sse2|avx|fma|f16c|amx)", word)],
            "load_at_start": os.getloadavg(), "python": platform.python_version(),
            "tilewise": commit.stdout.strip(),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")}


def short_name(about):
    words = re.sub(r"\((R|TM)\)|CPU|Processor|@.*", " ", about["cpu"], flags=re.IGNORECASE)
    name = "-".join(re.findall("[a-z0-9]+", words.lower())) or platform.machine()
    if not re.search("[0-9]", name) and about["family_model"][1]:  # of a virtual machine
        name += "-%s-%s" % tuple(about["family_model"])
    return name


def versions(python_modules):
    return {name: __import__(name).__version__ for name in python_modules}


def keep_freed_memory():
    """Outputs that a peer allocates at each call shall not come as fresh pages every time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)   # M_TRIM_THRESHOLD
    except OSError:
        pass


def go_first():
    """Before any thread is made, which inherits it. Linux weighs a session's processes among
    themselves, and sessions apart (sched(7), autogroup): both are told."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        pathlib.Path("/proc/self/autogroup").write_text("-20")
    except OSError as error:
        say("no higher priority for the session: %s" % error)


# ---- measuring ----------------------------------------------------------------------------------

def settle():
    """Until this process computes nothing: idle threads of thread pools spin for a while."""
    for _ in range(20):
        before = time.process_time()
        time.sleep(0.004)
        if time.process_time() - before < 0.0004:
            return


def waited():
    """Seconds that this process's threads were ready and had no processor: others were running."""
    total = 0
    for task in pathlib.Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError):
            pass
    return total * 1e-9


def one_round(library, threads, kernel, calls):
    """(share of the time that was waited, seconds a call, the ceiling around it)."""
    settle()
    before = library.peak_gflops(threads, kernel.implementation)
    waiting = waited()
    start = time.perf_counter()
    for _ in range(calls):
        kernel.call()
    spent = time.perf_counter() - start
    waiting = waited() - waiting
    after = library.peak_gflops(threads, kernel.implementation)
    return waiting / (spent * threads), spent / calls, (before + after) / 2


DISTURBED = 0.01  # share of a round's time that threads waited for a processor


def undisturbed(library, threads, kernel, calls, tries=8):
    """The first of a few rounds that is not disturbed, or the least disturbed."""
    best = None
    for _ in range(tries):
        found = one_round(library, threads, kernel, calls)
        best = found if best is None or found[0] < best[0] else best
        if best[0] < DISTURBED:
            break
    return best


def quartiles(values):
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def race(library, cell, threads, kernels, pairs, at_least):
    """Seconds a call and fractions of the ceiling, for each kernel and round."""
    calls = []
    for kernel in kernels:  # warm up: pages, pools, packed copies
        kernel.call()
        start = time.perf_counter()
        kernel.call()
        calls.append(max(1, math.ceil(at_least / max(time.perf_counter() - start, 1e-6))))
    seconds = {kernel.name: [] for kernel in kernels}
    fractions = {kernel.name: [] for kernel in kernels}
    shares = {kernel.name: [] for kernel in kernels}
    for _ in range(pairs):
        for kernel, n in zip(kernels, calls):
            share, spent, peak = undisturbed(library, threads, kernel, n)
            seconds[kernel.name].append(spent)
            fractions[kernel.name].append(cell.flops() / spent * 1e-9 / peak)
            shares[kernel.name].append(share)
    return seconds, fractions, shares


def kernels_of(library, cell, inputs, threads):
    """(name, how to make it)"""
    from compare_kernels import OnnxRuntime, Tilewise, Torch
    dtype = "f16" if cell.kind == "decode" else "f32"
    chosen = [(Tilewise, (library, cell, inputs, threads, "bhsd", dtype)),
              (Tilewise, (library, cell, inputs, threads, "bshd", dtype))]
    if cell.kind == "decode":
        chosen += [(Torch, (cell, inputs, threads, dtype, grouped))
                   for grouped in (False, True) for dtype in ("f32", "f16", "bf16")]
    else:
        chosen += [(Torch, (cell, inputs, threads)), (OnnxRuntime, (cell, inputs, threads))]
        if not cell.causal:  # under a causal mask both operators run the same code
            chosen.append((OnnxRuntime, (cell, inputs, threads, "attention")))
    for kind, arguments_ in chosen:
        words = [word for word in arguments_ if isinstance(word, str)]
        yield " ".join([kind.__name__] + words), lambda k=kind, a=arguments_: k(*a)


def measure(library, cell, threads, pairs, at_least):
    from compare_kernels import Inputs, Reference
    inputs = Inputs(cell)
    reference = Reference(cell, inputs)
    kernels, result = [], {"problem": cell.name(), "kind": cell.kind, "threads": threads,
                           "head_dim": cell.head_dim, "seqlen_q": cell.seqlen_q,
                           "seqlen_k": cell.seqlen_k, "causal": cell.causal,
                           "largest_output": reference.size, "kernels": {}, "not_run": {}}
    for name, make in kernels_of(library, cell, inputs, threads):
        try:
            kernel = make()
            kernel.call()
            kernels.append(kernel)
        except Exception as error:  # one may refuse what another can
            result["not_run"][name] = str(error)[:300]
    seconds, fractions, shares = race(library, cell, threads, kernels, pairs, at_least)
    everything = [share for parts in shares.values() for share in parts]
    result["disturbed_rounds"] = (sum(share > DISTURBED for share in everything)
                                  / max(1, len(everything)))
    for kernel in kernels:
        kept, disturbed = quiet(shares[kernel.name])
        times = quartiles([seconds[kernel.name][n] for n in kept])
        parts = quartiles([fractions[kernel.name][n] for n in kept])
        row = {"seconds": times[1], "seconds_quartiles": [times[0], times[2]],
               "gflops": cell.flops() / times[1] * 1e-9,
               "fraction_of_peak": parts[1], "fraction_quartiles": [parts[0], parts[2]],
               "rounds": len(kept), "disturbed": disturbed,
               "error": reference.error(kernel.output())}
        if kernel.implementation:
            row["implementation"] = kernel.implementation
        if cell.kind == "decode":
            width = 4 if " f32" in kernel.name else 2
            row["kv_gbytes_a_second"] = cell.kv_elements() * width / times[1] * 1e-9
        result["kernels"][kernel.name] = row
    compare(result, seconds, shares)
    for kernel in kernels:
        kernel.close()
    return result


def quiet(*shares):
    """The rounds in which none was disturbed; where that leaves fewer than three, all of them and
    True: they are not to be believed."""
    worst = [max(round_) for round_ in zip(*shares)]
    kept = [n for n, share in enumerate(worst) if share <= DISTURBED]
    return (kept, False) if len(kept) >= 3 else (list(range(len(worst))), True)


def compare(result, seconds, shares):
    """Each of ours with each peer: how many times as fast, round by round."""
    peers = [name for name in seconds if not name.startswith("tilewise")]
    for ours in (name for name in seconds if name.startswith("tilewise")):
        ratios = {}
        for peer in peers:
            kept, disturbed = quiet(shares[ours], shares[peer])
            parts = quartiles([seconds[peer][n] / seconds[ours][n] for n in kept])
            ratios[peer] = {"median": parts[1], "quartiles": [parts[0], parts[2]],
                            "disturbed": disturbed}
        row = result["kernels"][ours]
        row["times_as_fast_as"] = ratios
        if ratios:
            row["best_peer"] = min(ratios, key=lambda name: ratios[name]["median"])
            row["times_as_fast_as_best_peer"] = ratios[row["best_peer"]]["median"]
            near = 2 * row["times_as_fast_as_best_peer"]  # slower peers do not matter
            row["ratio_disturbed"] = any(ratio["disturbed"] for ratio in ratios.values()
                                         if ratio["median"] < near)


# ---- what is measured ---------------------------------------------------------------------------

def prefill(seqlen, head_dim, causal, threads):
    """As many heads as make a call of some 6 ms (20 ms where tensors grow slower than work) at
    150 GFLOP/s a thread, and never fewer than 4."""
    from compare_kernels import Cell
    one = Cell("prefill", 1, 1, 1, seqlen, seqlen, head_dim, causal)
    seconds = 0.006 if seqlen < 1024 else 0.02
    heads = max(4, round(seconds * 150e9 * threads / one.flops()))
    batch = max(1, round(heads / 8))
    return Cell("prefill", batch, heads if batch == 1 else 8, heads if batch == 1 else 8, seqlen,
                seqlen, head_dim, causal)


def cells(threads, quick):
    from compare_kernels import Cell
    for seqlen in (128, 1024, 4096) if quick else (128, 512, 1024, 2048, 4096, 8192):
        for head_dim in (64, 128):
            for causal in (False, True):
                yield prefill(seqlen, head_dim, causal, threads)
    for head_dim in (64, 128):  # tensors that stay in the caches from call to call
        yield Cell("cached", 1, 8, 8, 128, 128, head_dim)
    for seqlen in (1024, 32768) if quick else (1024, 4096, 32768):
        yield Cell("decode", 1, 32, 8, 1, seqlen, 128)
    yield Cell("long", 1, 4, 4, 64, 32768, 128)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer lengths and rounds")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "compare",
                        help="folder of the results (build/compare)")
    parser.add_argument("--venv", type=pathlib.Path, default=ROOT / "build" / "compare-venv",
                        help="the virtual environment (build/compare-venv)")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "compare-library",
                        help="where the library is built (build/compare-library)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads (1,2)")
    parser.add_argument("--pairs", type=int, help="rounds of each problem (9; quick: 7)")
    parser.add_argument("--priority", action="store_true",
                        help="go before other processes on a busy machine (root)")
    parser.add_argument("--only", default="", help="problems that contain this text")
    parser.add_argument("--inside", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.inside is None:  # outside the environment: make what is needed, and go there
        python = environment(options.venv)
        shim = build(options.build)
        os.execv(str(python), [str(python), str(pathlib.Path(__file__).resolve()), *sys.argv[1:],
                               "--inside", str(shim)])
    sys.dont_write_bytecode = True
    from compare_kernels import Library
    import compare_report
    keep_freed_memory()
    about = machine()
    if options.priority:
        go_first()
    about["priority"] = os.getpriority(os.PRIO_PROCESS, 0)
    about.update(versions(["numpy", "torch", "onnxruntime"]))
    library = Library(options.inside)
    report = {"machine": about, "quick": options.quick,
              "peers_not_measured": why_no_ggml(sys.executable), "cells": []}
    counts = [int(count) for count in options.threads.split(",")]
    work = [(cell, threads) for threads in counts for cell in cells(threads, options.quick)
            if options.only in cell.name()]
    pairs = options.pairs or (7 if options.quick else 9)
    start = time.monotonic()
    for n, (cell, threads) in enumerate(work):
        result = measure(library, cell, threads, pairs, 0.002 if options.quick else 0.005)
        report["cells"].append(result)
        say("%3d/%d %5.0f s  %s" % (n + 1, len(work), time.monotonic() - start,
                                    compare_report.line(result)))
    for result in report["cells"]:
        for row in result["kernels"].values():
            if "implementation" in row:
                about["kernel"] = row["implementation"]
                about["peak_of"] = library.peak_name(row["implementation"])
    about["load_at_end"] = os.getloadavg()
    report["seconds"] = time.monotonic() - start
    report["summary"] = compare_report.summary(report["cells"])
    options.out.mkdir(parents=True, exist_ok=True)
    base = options.out / ("cpu-" + short_name(about))
    base.with_name(base.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
    compare_report.plot(report, base.with_name(base.name + ".svg"))
    print(compare_report.text(report))
    print("written: %s.json and .svg" % base)


if __name__ == "__main__":
    main()
