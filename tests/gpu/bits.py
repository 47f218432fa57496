#!/usr/bin/env python3
"""GPU against emulator: where softmax is exact, O has the same bits; elsewhere they agree within
twice the bound of either (both were judged). Prints JSON.

    python3 tests/gpu/bits.py build/gpu/bin/tilewise
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile

STEPS = ("3a_thread_a_row", "3b_paper_loops", "3c_warp_tiles", "3d_backward")
EXACT = ("fwd s200 h2 d64 fill=constant", "fwd s130 hq4 hk2 d32 causal fill=constant",
         "fwd s200 h2 d64 fill=onehot")
# But for 3b, which divides O at every tile: thirds and fifths are rounded, and nvcc's fused
# multiply-adds round once where the emulator's products and sums round twice.
ROUNDED = {("3b_paper_loops", problem) for problem in EXACT if "constant" in problem}
OTHERS = ("fwd s200 h2 d64", "fwd s130 hq4 hk2 d128 causal")


def o_of(folder):
    """The bytes of `o` in outputs.safetensors."""
    data = (folder / "outputs.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8:8 + size])["o"]["data_offsets"]
    return data[8 + size + begin:8 + size + end]


def computed(command, problem, implementation):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([command, "run", problem, "--impl", implementation, "--out", folder],
                       check=True, stdout=subprocess.DEVNULL)
        return o_of(pathlib.Path(folder))


def main():
    rows, fine = [], True
    for problem in EXACT + OTHERS:
        for step in STEPS:
            gpu, emulated = (computed(sys.argv[1], problem, kind + "." + step)
                             for kind in ("stage", "emulated"))
            count = len(gpu) // 4
            a, b = struct.unpack("<%df" % count, gpu), struct.unpack("<%df" % count, emulated)
            row = {"problem": problem, "step": step, "numbers": count,
                   "different": sum(x != y for x, y in zip(a, b)),
                   "largest_difference": max(abs(x - y) for x, y in zip(a, b)),
                   "exact": problem in EXACT and (step, problem) not in ROUNDED}
            fine = fine and (not row["exact"] or gpu == emulated) and row["largest_difference"] < 1e-4
            rows.append(row)
    print(json.dumps(rows, indent=1))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
