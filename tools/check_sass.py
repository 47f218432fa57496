#!/usr/bin/env python3
"""What the compiler made of kernels: instructions counted in the machine code of object files and
libraries, and held to rules.

    python3 tools/check_sass.py FILE...                     the counts of every kernel
    python3 tools/check_sass.py FILE... --rules RULES       1 if a rule is broken
    python3 tools/check_sass.py FILE... --arch sm_90a       of this architecture alone
    python3 tools/check_sass.py FILE... --kernel REGEX      of these kernels alone
    python3 tools/check_sass.py --find                      which cuobjdump it uses

A rule is a line: an architecture, a regular expression that is searched for in the kernel's name
(without its parameters), and what must hold:

    # shipped forward kernels: at least so many of an instruction, none of another
    sm_90a  sm90::.*attend   HGMMA>=8  UTMALDG>=3  LDL=0  STL=0  STACK=0

On the left of >=, <=, = is the beginning of an instruction (MUFU.EX2, WARPGROUP.DEPBAR), or REG,
STACK, SHARED of the kernel's resources. LDL and STL are loads and stores of local memory: spilled
registers, or arrays whose indices are no constants. A rule that no kernel's name matches is broken.

Without a rule, too, it is an error if an instruction writes registers that an HGMMA under way may
still read (its operand A) or write (its accumulators): what ptxas before CUDA 13.3 is known to have
done (triton-lang/triton issues 9433, 11781). Every way through the kernel's branches is followed.

Needs cuobjdump and nvdisasm: of the CUDA toolkit, of $CUOBJDUMP, or of PyPI's triton or
nvidia-cuda-cuobjdump. Without them it says so and ends with 77. Python's standard library only.
"""

import argparse
import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys

SHOWN = ("HGMMA", "HMMA", "WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR", "MUFU.EX2", "UTMALDG", "UTMASTG",
         "SYNCS", "BAR", "LDL", "STL")
RESOURCES = ("REG", "STACK", "SHARED")
NO_CUOBJDUMP = 77
MOST_GROUPS = 24

FUNCTION = re.compile(r"^\s*Function\s*:\s*(\S+)")
ARCHITECTURE = re.compile(r"^arch = (sm_\w+)")
USED_BY = re.compile(r"^\s*Function\s+(\S+?):\s*$")
USED = re.compile(r"\b(REG|STACK|SHARED):(\d+)")
CODE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*);")
REGISTER = re.compile(r"^R(\d+)")
WAIT = re.compile(r"gsb0, (0x[0-9a-f]+)")
TARGET = re.compile(r"(0x[0-9a-f]+)")
CONDITION = re.compile(r"^([A-Z][A-Z0-9_.]*)(>=|<=|=)(\d+)$")
HOLDS = {">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b, "=": lambda a, b: a == b}


class Instruction:
    def __init__(self, address, predicate, name, operands):
        self.address, self.predicate, self.name = int(address, 16), predicate, name.rstrip(".")
        self.operands = [operand.strip() for operand in operands.split(",")]

    def registers(self, number, count):
        """The registers from operand `number` on, if it is one."""
        found = REGISTER.match(self.operands[number]) if number < len(self.operands) else None
        return frozenset(range(int(found[1]), int(found[1]) + count)) if found else frozenset()

    def written(self):
        """What it writes, but for an HGMMA's accumulators: at most too few, never too many."""
        words = self.name.split(".")
        if words[0] in ("ST", "STG", "STS", "STL", "RED", "BAR", "SYNCS", "ISETP", "FSETP", "STSM",
                        "HGMMA", "WARPGROUP", "REDG", "REDUX"):
            return frozenset()
        wide = 4 if "128" in words or words[0] == "LDSM" and "4" in words else \
            2 if "64" in words or "WIDE" in words or words[0] == "CS2R" and "32" not in words else 1
        return self.registers(0, wide)


class Kernel:
    def __init__(self, architecture, symbol):
        self.architecture, self.symbol, self.name = architecture, symbol, symbol
        self.instructions = collections.Counter()
        self.resources = {}
        self.code = []

    def count(self, beginning):
        """How many instructions begin so, in whole words; or a resource."""
        if beginning in RESOURCES:
            return self.resources.get(beginning, 0)
        return sum(count for name, count in self.instructions.items()
                   if name == beginning or name.startswith(beginning + "."))


def read_sass(text, kernels):
    """Adds what `cuobjdump -sass` printed to `kernels`, by (architecture, symbol)."""
    architecture, kernel = "", None
    for line in text.splitlines():
        if match := ARCHITECTURE.match(line):
            architecture, kernel = match.group(1), None
        elif match := FUNCTION.match(line):
            key = (architecture, match.group(1))
            kernel = kernels.setdefault(key, Kernel(*key))
        elif kernel is not None and (match := CODE.match(line)):
            instruction = Instruction(*match.groups())
            kernel.code.append(instruction)
            kernel.instructions[instruction.name] += 1


def read_resources(text, kernels):
    """The same for `cuobjdump -res-usage`."""
    architecture, kernel = "", None
    for line in text.splitlines():
        if match := ARCHITECTURE.match(line):
            architecture, kernel = match.group(1), None
        elif match := USED_BY.match(line):
            kernel = kernels.get((architecture, match.group(1)))
        elif kernel is not None and (found := USED.findall(line)):
            kernel.resources.update((name, int(number)) for name, number in found)
            kernel = None


def overwritten(kernel):
    """Where registers of an HGMMA under way are written, a sentence each.

    Under way are groups, each closed by an HGMMA that names the barrier gsb0; WARPGROUP.DEPBAR.LE
    gsb0, N waits for all but the N youngest."""
    if not kernel.count("HGMMA"):
        return []
    at = {instruction.address: n for n, instruction in enumerate(kernel.code)}
    found, seen, ways = {}, set(), [(0, ())]
    while ways:
        n, groups = ways.pop()
        while n < len(kernel.code) and (n, groups) not in seen:
            seen.add((n, groups))
            instruction = kernel.code[n]
            if instruction.name.startswith("HGMMA"):
                groups = issued(groups, instruction)
            elif instruction.name.startswith("WARPGROUP.DEPBAR"):
                wait = WAIT.search(", ".join(instruction.operands))
                groups = waited(groups, int(wait[1], 16) if wait else 0)
            elif both := instruction.written() & frozenset().union(*(group[0] for group in groups)):
                found[instruction.address] = (
                    f"{kernel.name} ({kernel.architecture}): {instruction.name} at "
                    f"{instruction.address:#x} writes R{min(both)}, which an HGMMA under way uses")
            if instruction.name.startswith("BRA"):
                target = TARGET.search(instruction.operands[-1])
                if target and int(target[1], 16) in at:
                    ways.append((at[int(target[1], 16)], groups))
                if not instruction.predicate and len(instruction.operands) == 1:
                    break
            elif instruction.name in ("EXIT", "RET") and not instruction.predicate:
                break
            n += 1
    return [found[address] for address in sorted(found)]


def issued(groups, hgmma):
    """Groups are (registers, closed), the oldest first."""
    columns = int(re.search(r"64x(\d+)x", hgmma.name)[1])
    uses = hgmma.registers(0, columns // 2) | hgmma.registers(1, 4)
    if groups and not groups[-1][1]:
        uses |= groups[-1][0]
        groups = groups[:-1]
    groups = (*groups, (uses, "gsb0" in hgmma.operands))
    if len(groups) > MOST_GROUPS:  # in a loop that never waits
        groups = ((groups[0][0] | groups[1][0], True), *groups[2:])
    return groups


def waited(groups, youngest):
    closed = [group for group in groups if group[1]]
    return tuple((closed[-youngest:] if youngest else []) + [g for g in groups if not g[1]])


class Rule:
    def __init__(self, line, where):
        words = line.split()
        self.line, self.where = line, where
        conditions = [CONDITION.match(word) for word in words[2:]]
        if not conditions or not all(conditions):
            raise SystemExit(f"{where}: expected ARCHITECTURE REGEX INSTRUCTION>=N ...: {line}")
        self.architecture, self.kernels = words[0], re.compile(words[1])
        self.conditions = [(match.group(1), match.group(2), int(match.group(3)))
                           for match in conditions]

    def broken(self, kernels):
        """What breaks the rule, a sentence each."""
        matched = [kernel for kernel in kernels if kernel.architecture == self.architecture
                   and self.kernels.search(kernel.name)]
        if not matched:
            return [f"{self.where}: no kernel for {self.architecture} is called "
                    f"'{self.kernels.pattern}'"]
        return [f"{kernel.name} ({kernel.architecture}): {what} is {kernel.count(what)}, "
                f"expected {sign} {number} ({self.where})"
                for kernel in matched for what, sign, number in self.conditions
                if not HOLDS[sign](kernel.count(what), number)]


def rules_of(text, name):
    lines = ((number, line.split("#")[0].strip())
             for number, line in enumerate(text.splitlines(), 1))
    return [Rule(line, f"{name}:{number}") for number, line in lines if line]


def without_parameters(name):
    """A demangled name up to the list of parameters, without "void " before it."""
    depth = 0
    for at, letter in enumerate(name):
        if letter == "(" and depth == 0 and not name.startswith("(anonymous", at):
            return name[:at].removeprefix("void ")
        depth += (letter == "<") - (letter == ">")
    return name


def demangle(kernels):
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool and kernels:
        said = subprocess.run([tool], input="\n".join(kernel.symbol for kernel in kernels),
                              capture_output=True, text=True, check=True).stdout.splitlines()
        for kernel, name in zip(kernels, said):
            kernel.name = without_parameters(name)


def cuobjdump():
    """The program's path, or None; nvdisasm, which it starts, lies beside it."""
    places = [os.environ.get("CUOBJDUMP"), shutil.which("cuobjdump")]
    if nvcc := shutil.which("nvcc"):
        places.append(pathlib.Path(nvcc).resolve().parent / "cuobjdump")
    for folder in sys.path:
        places += [pathlib.Path(folder, "triton/backends/nvidia/bin/cuobjdump"),
                   *pathlib.Path(folder, "nvidia").glob("*/bin/cuobjdump")]
    return next((str(place) for place in places if place and os.access(place, os.X_OK)), None)


def disassembled(program, files, architecture):
    kernels = {}
    options = ["-arch", architecture] if architecture else []
    environment = {**os.environ,
                   "PATH": str(pathlib.Path(program).parent) + os.pathsep + os.environ["PATH"]}
    for file in files:
        for what, read in (("-sass", read_sass), ("-res-usage", read_resources)):
            done = subprocess.run([program, what, *options, file], capture_output=True, text=True,
                                  env=environment)
            if done.returncode != 0:
                raise SystemExit(f"{program} {what} {file}: {done.stderr.strip()}")
            read(done.stdout, kernels)
    # Functions that are no kernels have no resources of their own.
    found = [kernel for kernel in kernels.values() if kernel.resources]
    demangle(found)
    return sorted(found, key=lambda kernel: (kernel.architecture, kernel.name))


def table(kernels):
    lines = []
    for kernel in kernels:
        counts = [f"{what} {kernel.count(what)}" for what in (*RESOURCES, *SHOWN)
                  if kernel.count(what)]
        lines.append(f"{kernel.architecture}  {kernel.name}\n    {', '.join(counts)}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--find", action="store_true")
    parser.add_argument("--rules", type=pathlib.Path)
    parser.add_argument("--arch", default="")
    parser.add_argument("--kernel", default="", help="a regular expression")
    arguments = parser.parse_args()
    rules = rules_of(arguments.rules.read_text(encoding="utf-8"), arguments.rules.name) \
        if arguments.rules else []
    program = cuobjdump()
    if program is None:
        print("There is no cuobjdump: the machine code is not looked at "
              "(pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or set CUOBJDUMP).")
        return NO_CUOBJDUMP
    if arguments.find or not arguments.files:
        print(program)
        return 0
    kernels = [kernel for kernel in disassembled(program, arguments.files, arguments.arch)
               if re.search(arguments.kernel, kernel.name)]
    print(table(kernels))
    broken = [sentence for rule in rules for sentence in rule.broken(kernels)]
    broken += [sentence for kernel in kernels for sentence in overwritten(kernel)]
    for sentence in broken:
        print(sentence)
    print(f"{len(kernels)} kernels, {len(rules)} rules, {len(broken)} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
