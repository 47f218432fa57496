#!/usr/bin/env python3
"""Naive attention on the GPU, for the speed of the course's CUDA steps to stand beside: PyTorch's
`math` backend, whole matrices, float32 without TF32. Prints JSON.

    python3 tests/gpu/naive.py fwd:1,8,2048,64,0 bwd:1,8,2048,64,1     pass:batch,heads,N,d,causal
"""

import json
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.backends.cuda.matmul.allow_tf32 = False


def seconds(call, repetitions=15):
    for _ in range(3):
        call()
    times = []
    for _ in range(repetitions):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return {"median": statistics.median(times), "fastest": min(times), "slowest": max(times)}


def main():
    rows = []
    for argument in sys.argv[1:]:
        kind, sizes = argument.split(":")
        batch, heads, n, d, causal = (int(x) for x in sizes.split(","))
        backward = kind == "bwd"
        q, k, v = (torch.randn(batch, heads, n, d, device="cuda", requires_grad=backward)
                   for _ in range(3))
        dout = torch.randn(batch, heads, n, d, device="cuda")

        def call():
            with sdpa_kernel(SDPBackend.MATH):
                o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=bool(causal))
                if backward:
                    torch.autograd.grad(o, (q, k, v), dout)
        rows.append({"problem": argument, "seconds": seconds(call)})
    print(json.dumps({"torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
