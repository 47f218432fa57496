#!/usr/bin/env python3
"""gdb stops in a kernel under the emulator, for one thread, and prints its row's m and l.

    gdb_test.py PROGRAM      PROGRAM is tilewise_emulator_online_row

They are held against the same sums worked out here. Answers 77, which ctest takes for skipped,
where there is no gdb or it may not start programs. docs/emulator.md shows these commands.
"""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

DIM, KEYS = 4, 20
SOURCE = Path(__file__).resolve().parent / "online_row.cu"


def numbers(count, step):
    return [(n * step % 17 - 8) / 8 for n in range(count)]  # online_row_main.cpp has the same


def scores(row):
    q, k = numbers(128 * DIM, 5), numbers(KEYS * DIM, 7)
    return [sum(q[row * DIM + c] * k[j * DIM + c] for c in range(DIM)) for j in range(KEYS)]


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def line_with(mark):
    for number, text in enumerate(SOURCE.read_text(encoding="utf-8").splitlines(), 1):
        if mark in text:
            return number
    raise AssertionError(f"{SOURCE} has no line with {mark!r}")


def stopped(program, place, condition):
    """m and l where the kernel stops, and all that gdb says."""
    commands = [
        "set debuginfod enabled off",
        f"break {place} if {condition}",
        "run",
        'printf "row %d: m = %.9g, l = %.9g\\n", row, m, l',
        "backtrace 1",
        "kill",
    ]
    arguments = ["gdb", "-nx", "-batch"]
    for command in commands:
        arguments += ["-ex", command]
    done = subprocess.run([*arguments, program], capture_output=True, text=True, timeout=50)
    said = done.stdout + done.stderr
    if "ptrace" in said or "Could not trace" in said or "Couldn't get" in said:
        skip(f"gdb may not start programs here: {said.strip().splitlines()[-1]}")
    found = re.search(r"row (\d+): m = (\S+), l = (\S+)", said)
    assert found, f"gdb did not stop at {place} if {condition}:\n{said}"
    assert "online_row" in said, said
    return int(found[1]), float(found[2]), float(found[3])


def check(what, got, expected):
    print(f"{what}: {got:.9g}, expected {expected:.9g}")
    assert math.isclose(got, expected, rel_tol=1e-6), what


def main():
    if shutil.which("gdb") is None:
        skip("gdb is not installed")
    program = sys.argv[1]

    # At the end of row 70, thread 6 of the second block.
    place = f"online_row.cu:{line_with('stop here: the row is done')}"
    row, m, l = stopped(program, place, "row == 70")
    s = scores(70)
    assert row == 70
    check("row 70: m", m, max(s))
    check("row 70: l", l, sum(math.exp(x - max(s)) for x in s))

    # On the way, before key 7 of row 33 is added.
    place = f"online_row.cu:{line_with('stop here: one key more')}"
    names = "tilewise::emulator"
    thread = f"{names}::thread_index().x == 33 && {names}::block_index().x == 0"
    row, m, l = stopped(program, place, f"j == 7 && {thread}")
    s = scores(33)[:7]
    assert row == 33
    check("row 33, 7 keys: m", m, max(s))
    check("row 33, 7 keys: l", l, sum(math.exp(x - max(s)) for x in s))


if __name__ == "__main__":
    main()
