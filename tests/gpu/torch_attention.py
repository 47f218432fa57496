#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention on the GPU, for the course's CUDA steps to stand beside.
Prints JSON; without PyTorch or without its GPU, why.

    python3 tests/gpu/torch_attention.py math "fwd s2048 h8 d64 f32" "bwd s2048 h8 d64 f32 causal"
    python3 tests/gpu/torch_attention.py flash "fwd b16 sq1 sk4096 hq32 hk8 d128 f16"

`math` is naive attention, whole matrices, without TF32; `flash` is FlashAttention-2. Timed as
tests/gpu/benchmark.cu times: a cold second-level cache before each call, a rest before each row. A
backward problem is the forward and the backward pass.
"""

import json
import re
import statistics
import sys
import time

FLUSHED_BYTES = 256 << 20
SECONDS_A_ROW, FEWEST_CALLS, MOST_CALLS, REST = 0.4, 5, 100, 0.3


def sizes_of(problem):
    """What a problem's line (docs/problem.md) says."""
    words = problem.split()
    found = dict(re.fullmatch(r"([a-z]+)(\d+)", word).groups() for word in words
                 if re.fullmatch(r"(b|s|sq|sk|h|hq|hk|d)\d+", word))
    size = {key: int(value) for key, value in found.items()}
    return {"pass": words[0], "batch": size.get("b", 1),
            "sq": size.get("sq", size.get("s")), "sk": size.get("sk", size.get("s")),
            "hq": size.get("hq", size.get("h", 1)), "hk": size.get("hk", size.get("h", 1)),
            "d": size["d"], "causal": "causal" in words,
            "dtype": next((word for word in words if word in ("f16", "bf16")), "f32")}


def line_of(size):
    """The problem as `tilewise` prints it, but for the seed."""
    return "%s b%d sq%d sk%d hq%d hk%d d%d %s%s" % (
        size["pass"], size["batch"], size["sq"], size["sk"], size["hq"], size["hk"], size["d"],
        size["dtype"], " causal" if size["causal"] else "")


def summary(times):
    times = sorted(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": statistics.median(times), "low": low, "high": high, "fastest": times[0],
            "slowest": times[-1], "calls": len(times)}


def seconds(torch, call, other):
    time.sleep(REST)
    call()
    times = []
    while len(times) < FEWEST_CALLS or (sum(times) < SECONDS_A_ROW and len(times) < MOST_CALLS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        # Meanwhile Python gets ahead of the GPU, and what is timed is not Python.
        torch.cuda._sleep(1_000_000)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return summary(times)


def calls_of(torch, backend, size):
    """The ways to compute the problem, by name. Where one query meets several heads of a group, the
    group's heads may also be the queries of one head."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[size["dtype"]]
    backward = size["pass"] == "bwd"

    def tensor(rows, heads):
        # flash as our steps have it, [batch, rows, heads, d]; math, which copies, as it likes it.
        shape = (size["batch"], rows, heads, size["d"])
        if backend == "math":
            shape = (shape[0], shape[2], shape[1], shape[3])
        it = torch.randn(shape, device="cuda", dtype=dtype)
        it = it if backend == "math" else it.transpose(1, 2)
        return it.detach().requires_grad_(backward)

    q, k, v = (tensor(size[rows], size[heads])
               for rows, heads in (("sq", "hq"), ("sk", "hk"), ("sk", "hk")))
    dout = torch.randn_like(q)
    kind = SDPBackend.MATH if backend == "math" else SDPBackend.FLASH_ATTENTION
    grouped = size["hq"] != size["hk"]

    def attend(queries, **options):
        with sdpa_kernel(kind):
            o = torch.nn.functional.scaled_dot_product_attention(
                queries, k, v, is_causal=size["causal"], **options)
            if backward:
                torch.autograd.grad(o, (q, k, v), dout)

    ways = {"": lambda: attend(q, **({"enable_gqa": True} if grouped else {}))}
    if grouped and size["sq"] == 1:
        one_head = q.detach().reshape(size["batch"], size["hk"], -1, size["d"])
        ways["grouped"] = lambda: attend(one_head)
    return ways


def row_of(torch, backend, size, other):
    """The fastest way, or why there is none."""
    if size["causal"] and size["sq"] != size["sk"]:
        return {"why_not": "PyTorch's causal mask begins at the first key"}
    best, why = None, None
    for name, call in calls_of(torch, backend, size).items():
        try:
            measured = seconds(torch, call, other)
        except RuntimeError as error:
            why = str(error).split("\n")[0]
            continue
        if best is None or measured["median"] < best["seconds"]["median"]:
            best = {"seconds": measured, **({"way": name} if name else {})}
    return best or {"why_not": why}


def main():
    backend, problems = sys.argv[1], sys.argv[2:]
    try:
        import torch
        if not torch.cuda.is_available():
            raise ImportError("PyTorch sees no GPU")
    except ImportError as error:
        print(json.dumps({"torch": None, "why": str(error)}))
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    other = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    rows = []
    for problem in problems:
        size = sizes_of(problem)
        rows.append({"problem": line_of(size), **row_of(torch, backend, size, other)})
        torch.cuda.empty_cache()
    print(json.dumps({"torch": torch.__version__, "backend": backend, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
