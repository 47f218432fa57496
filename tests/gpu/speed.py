#!/usr/bin/env python3
"""The shipped CUDA kernels beside PyTorch's scaled_dot_product_attention, in one process, through
the C interface: forward, backward, decoding, by the papers' protocol (16384 tokens in all, heads
that make 2048 columns).

    python3 tests/gpu/speed.py --library build/gpu-library/cuda/api/libtilewise_cuda.so --out speed.json
    python3 tests/gpu/speed.py ... --rows "forward d64" --cells 1024 4096     a part of it
    python3 tests/gpu/speed.py --table speed.json [second.json]               the tables again

One GPU, bf16. A round times ours and each backend there and back, A B C C B A, so that what drifts
(the clock, as the card gets warm) meets all of them; before every call something else fills the
second-level cache, and before every round the card rests. A round gives one ratio: a backend's time
over ours, more than 1 in our favour. A cell's ratio is the median of its rounds; its interval holds
the true median with at least 95 % (binomial order statistics; with five rounds it is the smallest
and the largest, 94 %); a row's is the geometric mean over its cells, its interval from resampling
rounds.
"""

import argparse
import ctypes
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from c_interface import Library  # noqa: E402

TOKENS, COLUMNS = 16384, 2048
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
FLUSHED_BYTES = 256 << 20  # an H100's second level has 50 MiB
BACKENDS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION",
            "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
#: What rows are held to, by how their names begin, against "flash", which is FlashAttention-2.
TARGETS = {"forward": 1.00, "backward d64": 0.97, "backward d128": 0.97, "decode": 1.02}


class Cell:
    """One problem: its tensors, how long it is, and the ways to compute it by name."""

    def __init__(self, torch, library, context, row, size):
        self.torch, self.library, self.context = torch, library, context
        self.row, self.size = row, size
        self.backward = row.startswith("backward")
        b, sq, sk, hq, hk, d = (size[key] for key in ("b", "sq", "sk", "hq", "hk", "d"))
        made = lambda rows, heads: torch.randn(  # noqa: E731
            (b, rows, heads, d), device="cuda", dtype=torch.bfloat16)
        self.q, self.k, self.v = made(sq, hq), made(sk, hk), made(sk, hk)
        self.o = torch.empty_like(self.q)
        self.lse = torch.empty((b, hq, sq), device="cuda", dtype=torch.float32)
        self.dout = made(sq, hq) if self.backward else None
        self.gradients = [torch.empty_like(t) for t in (self.q, self.k, self.v)]
        self.flops = 4 * b * hq * sq * sk * d * (2.5 if self.backward else 1) \
            / (2 if size["causal"] else 1)
        self.bytes = 2 * (self.q.numel() + self.k.numel() + self.v.numel() + self.o.numel())

    def ours(self):
        lib, tensor = self.library, self.library.tensor
        attention = lib.struct("tilewise_attention")
        attention.causal = int(self.size["causal"])
        attention.q, attention.k, attention.v = map(tensor, (self.q, self.k, self.v))
        attention.o, attention.lse = tensor(self.o), tensor(self.lse)
        call = "tilewise_attention_forward"
        given, which = ctypes.byref(attention), lib.constant("FORWARD")
        if self.backward:
            lib.check(call, self.context, given, *self.workspace(given, which), self.stream())
            attention.dout = tensor(self.dout)
            attention.dq, attention.dk, attention.dv = map(tensor, self.gradients)
            call, which = "tilewise_attention_backward", lib.constant("BACKWARD")
        answer = lib.struct("tilewise_answer")
        lib.check("tilewise_query", self.context, given, which, ctypes.byref(answer))
        self.implementation = lib.text(answer.implementation)
        space = self.workspace(given, which)
        self.kept = attention  # what `given` points to
        return lambda: lib.check(call, self.context, given, *space, self.stream())

    def workspace(self, given, which):
        needed = ctypes.c_size_t()
        self.library.check("tilewise_attention_workspace", self.context, given, which,
                           ctypes.byref(needed), None)
        memory = self.torch.empty(needed.value, dtype=self.torch.uint8, device="cuda")
        self.spaces = getattr(self, "spaces", []) + [memory]
        pointer = ctypes.c_void_p(memory.data_ptr()) if needed.value else None
        return pointer, ctypes.c_size_t(needed.value)

    def stream(self):
        return ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)

    def peer(self, backend):
        """Ways of one backend: where one query meets a group of heads, the group's heads may be the
        queries of one head."""
        torch = self.torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        kind = getattr(SDPBackend, BACKENDS[backend])
        q, k, v = (t.transpose(1, 2) for t in (self.q, self.k, self.v))
        grouped = self.size["hq"] != self.size["hk"]
        attend = torch.nn.functional.scaled_dot_product_attention

        def forward(queries, **options):
            with sdpa_kernel(kind), torch.no_grad():
                return attend(queries, k, v, is_causal=self.size["causal"], **options)

        if self.backward:
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            with sdpa_kernel(kind):
                o = attend(*leaves, is_causal=self.size["causal"])
            dout = self.dout.transpose(1, 2)
            return [lambda: torch.autograd.grad(o, leaves, dout, retain_graph=True)]
        if not grouped:
            return [lambda: forward(q)]
        ways = [lambda: forward(q, enable_gqa=True)]
        if self.size["sq"] == 1:
            packed = q.reshape(self.size["b"], self.size["hk"], -1, self.size["d"])
            ways.insert(0, lambda: forward(packed))
        return ways


class Clock:
    def __init__(self, torch):
        self.torch = torch
        self.other = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")

    def seconds(self, call):
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.other.zero_()
        self.torch.cuda._sleep(1_000_000)  # Python gets ahead of the GPU: it is not timed
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def accuracy(cell):
    """Relative errors (Frobenius) of ours and of flash, against float64 of the first sequence."""
    torch = cell.torch
    q, k, v = (t[:1].transpose(1, 2).double().requires_grad_(cell.backward)
               for t in (cell.q, cell.k, cell.v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(cell.size["d"])
    if cell.size["causal"]:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device="cuda")
                                    .triu(1), -math.inf)
    o = scores.softmax(-1) @ v
    wanted = [o]
    if cell.backward:
        wanted = torch.autograd.grad(o, (q, k, v), cell.dout[:1].transpose(1, 2).double())
    relative = lambda got: max(  # noqa: E731
        ((g[:1].double() - w).norm() / w.norm()).item() for g, w in zip(got, wanted))
    cell.ours()()
    ours = [t.transpose(1, 2) for t in (cell.gradients if cell.backward else [cell.o])]
    theirs = cell.peer("flash")[0]()
    return {"ours": relative(ours), "flash": relative(theirs if cell.backward else [theirs])}


def best_way(clock, ways):
    """The fastest of a backend's ways; None and why, where it has none."""
    best, why = None, None
    for way in ways:
        try:
            clock.seconds(way)
            took = min(clock.seconds(way) for _ in range(3)) if len(ways) > 1 else 0
        except RuntimeError as error:
            why = str(error).split("\n")[0][:120]
            continue
        if best is None or took < best[0]:
            best = (took, way)
    return (best[1] if best else None), why


def measure(clock, cell, backends, rounds, rest):
    torch = cell.torch
    calls, why_not = {"ours": cell.ours()}, {}
    clock.seconds(calls["ours"])
    for backend in backends:
        try:
            way, why = best_way(clock, cell.peer(backend))
        except RuntimeError as error:
            way, why = None, str(error).split("\n")[0][:120]
        if way:
            calls[backend] = way
        else:
            why_not[backend] = why
            torch.cuda.empty_cache()
    times = {name: [] for name in calls}
    for number in range(rounds):
        time.sleep(rest)
        # The slowest one is not worth as many rounds.
        names = [name for name in calls if name != "math" or number < 3]
        there_and_back = {name: 0.0 for name in names}
        for name in names + names[::-1]:
            there_and_back[name] += clock.seconds(calls[name]) / 2
        for name in names:
            times[name].append(there_and_back[name])
    return times, why_not


def interval(values):
    """Median, and the order statistics around it between which the true one lies with 95 %."""
    ordered, n = sorted(values), len(values)
    outside = 0
    while outside < n // 2 and 2 * sum(math.comb(n, j) for j in range(outside + 1)) <= 0.05 * 2**n:
        outside += 1
    outside = max(outside - 1, 0) if n > 1 else 0
    return {"median": statistics.median(ordered), "low": ordered[outside],
            "high": ordered[n - 1 - outside]}


def cells_of(row):
    kind, *words = row.split()
    if kind == "decode":
        for batch in (1, 4, 16, 64):
            for keys in (4096, 16384, 65536):
                yield {"b": batch, "sq": 1, "sk": keys, "hq": 32, "hk": 8, "d": 128,
                       "causal": False}
        return
    d = int(words[0][1:])
    for n in LENGTHS:
        yield {"b": TOKENS // n, "sq": n, "sk": n, "hq": COLUMNS // d, "hk": COLUMNS // d, "d": d,
               "causal": words[1] == "causal"}


ROWS = [f"{kind} d{d} {mask}" for kind, widths in (("forward", (64, 128, 256)),
                                                   ("backward", (64, 128, 256)))
        for d in widths for mask in ("full", "causal")] + ["decode"]


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def summaries(cells):
    """For each row and backend the geometric mean over its cells (of N >= 1024) and its interval."""
    draw, result = random.Random(1), []
    for row in dict.fromkeys(cell["row"] for cell in cells):
        mine = [cell for cell in cells if cell["row"] == row and cell["size"]["sk"] >= 1024]
        for backend in BACKENDS:
            rounds = [[t / o for t, o in zip(cell["seconds"][backend], cell["seconds"]["ours"])]
                      for cell in mine if backend in cell["seconds"]]
            if not rounds:
                continue
            means = sorted(geometric_mean([statistics.median(draw.choices(r, k=len(r)))
                                           for r in rounds]) for _ in range(400))
            result.append({"row": row, "backend": backend, "cells": len(rounds),
                           "mean": geometric_mean([statistics.median(r) for r in rounds]),
                           "low": means[10], "high": means[389]})
    return result


def together(runs, part, key):
    """What the runs say of the same thing, in the order in which it first comes up."""
    found = {}
    for run in runs:
        for entry in run[part]:
            found.setdefault(key(entry), []).append(entry)
    return found.values()


def table(runs):
    """Markdown: each row and cell, of one call of this script or more."""
    lines = ["| row | backend | its time over ours, geometric mean (95 %) | target |",
             "|---|---|---|---|"]
    for parts in together(runs, "rows", lambda part: (part["row"], part["backend"])):
        values = "; ".join(f"{p['mean']:.2f} ({p['low']:.2f} to {p['high']:.2f})" for p in parts)
        row, backend = parts[0]["row"], parts[0]["backend"]
        target = [value for begin, value in TARGETS.items() if row.startswith(begin)]
        shown = target[0] if target and backend == "flash" else ""
        lines.append(f"| {row} | {backend} | {values} | {shown} |")
    there = [name for name in BACKENDS
             if any(name in cell["ratios"] for run in runs for cell in run["cells"])]
    lines += ["", "| row | batch, keys | TFLOP/s (decode: GB/s) | " + " | ".join(there) + " |",
              "|---|---|--:|" + "---|" * len(there)]
    for cells in together(runs, "cells", lambda cell: (cell["row"], str(cell["size"]))):
        columns = []
        for backend in there:
            ratios = [cell["ratios"][backend] for cell in cells if backend in cell["ratios"]]
            columns.append("; ".join(f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
                                     for r in ratios) or "-")
        size, rate = cells[0]["size"], "; ".join(f"{cell['rate']:.0f}" for cell in cells)
        lines.append(f"| {cells[0]['row']} | {size['b']}, {size['sk']} | {rate} | "
                     + " | ".join(columns) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library")
    parser.add_argument("--out")
    parser.add_argument("--rows", nargs="*", default=ROWS, help="beginnings of rows' names")
    parser.add_argument("--cells", nargs="*", type=int, help="only these numbers of keys")
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rest", type=float, default=0.3)
    parser.add_argument("--table", nargs="+", help="print what was measured")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(Path(path).read_text()) for path in options.table]))
        return
    import torch
    library = Library(options.library)
    context, clock, cells = library.context_on_gpu(), Clock(torch), []
    for row in ROWS:
        if not any(row.startswith(wanted) for wanted in options.rows):
            continue
        for size in cells_of(row):
            if options.cells and size["sk"] not in options.cells:
                continue
            cell = Cell(torch, library, context, row, size)
            errors = accuracy(cell) if size["sq"] == size["sk"] == 1024 else None
            times, why_not = measure(clock, cell, options.backends, options.rounds, options.rest)
            ratios = {name: interval([t / o for t, o in zip(theirs, times["ours"])])
                      for name, theirs in times.items() if name != "ours"}
            ours = statistics.median(times["ours"])
            rate = cell.bytes / ours / 1e9 if row == "decode" else cell.flops / ours / 1e12
            cells.append({"row": row, "size": size, "implementation": cell.implementation,
                          "rate": rate, "ratios": ratios,
                          "seconds": times, "why_not": why_not,
                          **({"relative_error": errors} if errors else {})})
            shown = ", ".join(f"{name} {r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f})"
                              for name, r in ratios.items())
            print(f"{row} b{size['b']} sk{size['sk']}: {ours * 1e6:.1f} us, {rate:.0f}; {shown}"
                  + (f"; errors {errors}" if errors else ""), file=sys.stderr, flush=True)
            del cell
            torch.cuda.empty_cache()
            result = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
                      "cudnn": torch.backends.cudnn.version(), "rounds": options.rounds,
                      "rest": options.rest, "dtype": "bf16", "rows": summaries(cells),
                      "cells": cells}
            if options.out:
                Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(table([result]))


if __name__ == "__main__":
    main()
