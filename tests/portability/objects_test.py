#!/usr/bin/env python3
"""Looks into the CPU library's objects for what would run on a processor that does not have it.

    objects_test.py libtilewise.a --nm nm --objdump objdump

1. The tile kernels (flash/isa/*.cpp) are compiled with flags for newer processors. If one of them
   defines a symbol that another object may define too (weak, unique or in a comdat group: an inline
   function, an instance of a template), the linker keeps one of the two, and everybody runs it. So
   they define none.
2. No object but AVX2's and AVX-512's has an instruction of theirs: with a VEX or EVEX prefix.
"""
import argparse
import re
import subprocess
import sys

NEWER = ("avx2", "avx512")  # isa/avx2.cpp, isa/avx512.cpp
KERNELS = NEWER + ("sse2", "neon")

# A member of the archive: "avx2.cpp.o:     file format elf64-x86-64".
MEMBER = re.compile(r"^(?:.*[/(])?([A-Za-z0-9_.]+)\)?:\s+file format (\S+)")
# nm's letters for what more than one object may define; in capitals and w where it is defined.
SHARED = set("VWuvw")
# In objdump's: "  1a:\tvmovups %ymm0,(%rdi)". Of the mnemonics with v some are older: verr, verw,
# and those of virtualisation, vm*, which no compiler emits.
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\t(\S+)\s*(.*)$")
OLDER = re.compile(r"^(verr|verw|vmcall|vmlaunch|vmresume|vmxoff)")


def output_of(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_kernel(member, names):
    return any(member in (name + ".cpp.o", name + ".o") for name in names)


def shared_symbols(nm, archive):
    """{kernels' member: [what it defines that another may define, too]}"""
    found, member = {}, ""
    for line in output_of([nm, "--defined-only", "--demangle", archive]).splitlines():
        if line.endswith(":"):
            member = line[:-1].rpartition("/")[2]
            if is_kernel(member, KERNELS):
                found[member] = []
            continue
        words = line.split(None, 2)
        if member in found and len(words) == 3 and words[1] in SHARED:
            found[member].append(words[2])
    return found


def newer_instructions(objdump, archive):
    """{member that is not for newer processors: the first such instructions}, members read"""
    found, member, symbol, read = {}, "", "", []
    process = subprocess.Popen(
        [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", archive],
        stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        start = MEMBER.match(line)
        if start:
            member = start.group(1)
            read.append(member)
            continue
        if is_kernel(member, NEWER):
            continue
        if line.endswith(">:\n"):
            symbol = line.strip()
        instruction = INSTRUCTION.match(line)
        if not instruction:
            continue
        mnemonic, operands = instruction.groups()
        if (mnemonic.startswith("v") and not OLDER.match(mnemonic)) or "%ymm" in operands or \
                "%zmm" in operands:
            found.setdefault(member, []).append("%s %s in %s" % (mnemonic, operands, symbol))
    if process.wait() != 0:
        sys.exit("objdump failed")
    return found, read


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("archive")
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--objdump", default="objdump")
    parser.add_argument("--x86", action="store_true", help="instructions are x86's: look at them")
    arguments = parser.parse_args()
    failed = False

    shared = shared_symbols(arguments.nm, arguments.archive)
    for member, symbols in sorted(shared.items()):
        print("%s defines %d symbols that others may define" % (member, len(symbols)))
        for symbol in symbols[:10]:
            print("  " + symbol)
        failed = failed or bool(symbols)
    if not shared:
        print("no tile kernels in this build")

    if arguments.x86:
        newer, read = newer_instructions(arguments.objdump, arguments.archive)
        for member, instructions in sorted(newer.items()):
            print("%s has %d instructions of AVX or newer" % (member, len(instructions)))
            for instruction in instructions[:10]:
                print("  " + instruction)
        older = [member for member in read if not is_kernel(member, NEWER)]
        print("%d objects for any processor looked through" % len(older))
        failed = failed or bool(newer) or len(older) < 10
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
