#!/usr/bin/env python3
"""The CPU forward pass against PyTorch, ONNX Runtime and llama.cpp's ggml, measured in turns.

    python3 tests/bench/compare_cpu.py --quick                   three minutes
    python3 tests/bench/compare_cpu.py --out docs/results        all of it

Builds the library as a shared one and installs the peers into a virtual environment, both in
build/. Then, for each problem and number of threads, A, B, C, A, B, C, ...: every kernel in its
favourite layout, on the same numbers, in one process; after a pause in which all thread pools have
fallen asleep; between two looks at the multiply-add ceiling of its instruction set (a peer's: the
widest there is), because clocks drift; once more where other processes took the processor meanwhile
(/proc/self/task/*/schedstat). A ratio is the median of the ratios within rounds. A peer whose
output is not ours is not a peer, and said to be so.

Writes cpu-NAME.json and cpu-NAME.svg, and prints the table. Decoding is told apart: PyTorch has its
best of three dtypes, with enable_gqa and with the query heads of a group made into queries. What is
reached is told of the longer of two times, of reading as many bytes as K and V have (measured like
the multiply-adds, over so much memory, on as many threads) and of the multiply-adds.

ggml, which is compiled here from llama-cpp-python's sources, may be missing: a line says why. Its
favourite K and V are float16; in float32 problems those are listed, and not counted as a peer.
"""

import argparse
import ctypes
import datetime
import json
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

def kernels_of(library, ggml, cell, inputs, threads):
    """(name, how to make it)"""
    from compare_ggml import Ggml
    from compare_kernels import OnnxRuntime, Tilewise, Torch
    decode = cell.kind == "decode"
    dtype = "f16" if decode else "f32"
    chosen = [(Tilewise, (library, cell, inputs, threads, "bhsd", dtype)),
              (Tilewise, (library, cell, inputs, threads, "bshd", dtype))]
    if decode:
        chosen += [(Torch, (cell, inputs, threads, dtype, grouped))
                   for grouped in (False, True) for dtype in ("f32", "f16", "bf16")]
    else:
        chosen += [(Torch, (cell, inputs, threads)), (OnnxRuntime, (cell, inputs, threads))]
        if not cell.causal:  # under a causal mask both operators run the same code
            chosen.append((OnnxRuntime, (cell, inputs, threads, "attention")))
    if ggml is not None:
        chosen += [(Ggml, (ggml, cell, inputs, threads, dtype))
                   for dtype in (("f16",) if decode else ("f16", "f32"))]
    for kind, arguments_ in chosen:
        words = [word for word in arguments_ if isinstance(word, str)]
        yield " ".join([kind.__name__] + words), lambda k=kind, a=arguments_: k(*a)


# How far from ours an output may be, of the largest. PyTorch rounds weights to bf16; ggml rounds Q,
# K and V to f16, and when decoding adds up in f16, 32768 terms too.
TOLERANCE = {"f32": 1e-4, "f16": 0.01, "bf16": 0.03, "ggml f16 decode": 0.1}


def difference(kernel, cell, ours, largest):
    """From our output, of the largest there is; refused if that is more than rounding."""
    import numpy
    dtype = next((word for word in kernel.name.split() if word in TOLERANCE), "f32")
    allowed = TOLERANCE.get("%s %s" % (kernel.name, cell.kind),
                            max(TOLERANCE[dtype], TOLERANCE["f16"] if cell.kind == "decode" else 0))
    found = float(numpy.abs(kernel.output().astype(numpy.float32) - ours).max()) / largest
    if not found <= allowed:
        raise ValueError("its output differs from ours by %.2g of the largest: more than %g"
                         % (found, allowed))
    return found


def measure(library, ggml, cell, threads, pairs, at_least):
    import numpy
    from compare_kernels import Inputs, Reference
    from compare_race import DISTURBED, compare, race, row_of
    inputs = Inputs(cell)
    reference = Reference(cell, inputs)
    kernels, differences = [], {}
    result = {"problem": cell.name(), "kind": cell.kind, "threads": threads,
              "head_dim": cell.head_dim, "seqlen_q": cell.seqlen_q, "seqlen_k": cell.seqlen_k,
              "causal": cell.causal, "largest_output": reference.size, "kernels": {}, "not_run": {}}
    ours = None
    for name, make in kernels_of(library, ggml, cell, inputs, threads):
        try:
            kernel = make()
            kernel.call()
            if ours is None:
                ours = kernel.output().astype(numpy.float32)
            differences[kernel.name] = difference(kernel, cell, ours, reference.size)
            kernels.append(kernel)
        except Exception as error:  # one may refuse what another can
            result["not_run"][name] = str(error)[:300]
    rounds = race(library, cell, threads, kernels, pairs, at_least)
    result["disturbed_rounds"] = statistics.fmean(
        round_.share > DISTURBED for parts in rounds.values() for round_ in parts)
    for kernel in kernels:
        result["kernels"][kernel.name] = {**row_of(cell, kernel, rounds[kernel.name]),
                                          "error": reference.error(kernel.output()),
                                          "difference_from_ours": differences[kernel.name]}
    compare(result, rounds)
    for kernel in kernels:
        kernel.close()
    return result


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
    parser.add_argument("--ggml", type=pathlib.Path,
                        help="folder of libggml-base.so and libggml-cpu.so (built in the venv)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads (1,2)")
    parser.add_argument("--pairs", type=int, help="rounds of each problem (9; quick: 7)")
    parser.add_argument("--priority", action="store_true",
                        help="go before other processes on a busy machine (root)")
    parser.add_argument("--only", default="",
                        help="problems that contain this text: decode, sk1024, ...")
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
    import compare_ggml
    import compare_report
    ggml, described, missing = None, None, {}
    try:  # before the priority rises
        ggml, described = compare_ggml.load(options.venv / "ggml", say, options.ggml)
    except compare_ggml.Unavailable as error:
        missing["ggml"] = str(error)
        say("ggml is not measured: %s" % error)
    keep_freed_memory()
    about = machine()
    if options.priority:
        go_first()
    about["priority"] = os.getpriority(os.PRIO_PROCESS, 0)
    about.update(versions(["numpy", "torch", "onnxruntime"]), ggml=described)
    library = Library(options.inside)
    report = {"machine": about, "quick": options.quick, "peers_not_measured": missing, "cells": []}
    counts = [int(count) for count in options.threads.split(",")]
    work = [(cell, threads) for threads in counts for cell in cells(threads, options.quick)
            if options.only in cell.kind + " " + cell.name()]
    pairs = options.pairs or (7 if options.quick else 9)
    start = time.monotonic()
    for n, (cell, threads) in enumerate(work):
        result = measure(library, ggml, cell, threads, pairs, 0.002 if options.quick else 0.005)
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
