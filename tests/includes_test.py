#!/usr/bin/env python3
"""Who may include whom: reads every #include of the tree and holds it to the design's arrows.

    core     <- oracle <- tools, tests          core knows nobody and allocates nothing
    core     <- cpu, cuda                       never the oracle: an app must not carry the judge
    core, the harness's interface, the leaves (cpu/simd.hpp, cuda/device/) <- stages
    cuda/emulator/ <- stages/cuda_adapter.*     a CUDA step itself knows cuda/device/ alone
    a step of the course includes no other step

Run it alone: python3 tests/includes_test.py. It first plants violations of its own, to see that
each is found.
"""

import posixpath
import re
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("core", "oracle", "cpu", "cuda", "include", "stages", "tools", "tests")
SUFFIXES = {".hpp", ".cpp", ".h", ".c", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)

# What may be included from a file of this folder: folders end in "/", the rest are files.
ALLOWED = {
    "core": ("core/",),
    "oracle": ("core/", "oracle/"),
    "cpu": ("core/", "cpu/", "include/"),
    "cuda": ("core/", "cuda/", "include/"),
    "include": ("core/", "include/"),
    "stages": ("core/", "stages/", "oracle/problem.hpp", "oracle/harness/implementation.hpp",
               "cpu/simd.hpp", "cuda/device/"),
    "tools": tuple(f"{folder}/" for folder in FOLDERS),
    "tests": tuple(f"{folder}/" for folder in FOLDERS),
}
# What single files may include beside what their folder may.
BESIDE = {
    "stages/cuda_adapter.hpp": ("cuda/emulator/emulator.hpp",),
    "stages/cuda_adapter.cpp": ("cuda/emulator/named_memory.hpp",),
}
# The installed doors to the harness are the public headers that know the oracle.
HARNESS_DOORS = {"include/tilewise/harness.hpp", "include/tilewise/gtest.hpp"}
# Headers whose purpose is to allocate, throw or print: not for core.
NOT_IN_CORE = {
    "any", "deque", "fstream", "functional", "future", "iostream", "istream", "list", "map",
    "memory", "ostream", "set", "sstream", "stdexcept", "string", "thread", "unordered_map",
    "unordered_set", "vector",
}
# Installed under <prefix>/include/tilewise, where only relative paths still hold.
INSTALLED = ("core", "oracle")


def violations(root):
    """Every include that breaks a rule, as 'file: what is wrong'."""
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                name = path.relative_to(root).as_posix()
                # Other projects include what is installed: the consumer, and what new-kernel writes.
                if not name.startswith(("tests/consumer/", "tools/new_kernel/")):
                    found += [f"{name}: {wrong}" for wrong in violations_of(root, name)]
    return found


def violations_of(root, name):
    folder = name.split("/")[0]
    for quoted, angled in INCLUDE.findall((root / name).read_text(encoding="utf-8")):
        if angled and not angled.startswith("tilewise/"):
            if folder == "core" and angled in NOT_IN_CORE:
                yield f"core includes <{angled}>, which allocates, throws or prints"
            continue
        target, relative = resolve(root, name, quoted or f"include/{angled}")
        if target is None:
            yield f'"{quoted or angled}" is nowhere in the tree'
            continue
        if not may_include(name, target):
            yield f"{folder} must not include {target}"
        if folder in INSTALLED and name.endswith(".hpp") and not relative:
            yield f'"{quoted}" is found from the root only: an installed header needs a relative path'


def resolve(root, name, include):
    """The included file's path in the tree, as the compiler would find it, and whether relatively."""
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(name), include))
    if (root / beside).is_file():
        return beside, True
    if (root / include).is_file():
        return posixpath.normpath(include), False
    return None, False


def may_include(name, target):
    folder = name.split("/")[0]
    if name in HARNESS_DOORS:
        return target in HARNESS_DOORS or target.startswith("oracle/harness/")
    if target in HARNESS_DOORS and folder not in ("tools", "tests"):
        return False
    if not any(target == each or (each.endswith("/") and target.startswith(each))
               for each in ALLOWED[folder] + BESIDE.get(name, ())):
        return False
    # stages/<chapter>/<step>.cpp: the shared files lie in stages/ itself.
    parts, target_parts = name.split("/"), target.split("/")
    # (gpu/ is no chapter.)
    if (folder == target_parts[0] == "stages" and len(parts) > 2 and len(target_parts) > 2
            and parts[1] != "gpu"):
        return posixpath.splitext(name)[0] == posixpath.splitext(target)[0]
    return True


class Includes(unittest.TestCase):
    # A small tree in which every include is allowed ...
    TREE = {
        "core/dtype.hpp": "#include <cstdint>\n",
        "core/status.hpp": '#include "dtype.hpp"\n',
        "oracle/problem.hpp": '#include "../core/dtype.hpp"\n#include <vector>\n',
        "oracle/bounds.hpp": '#include "problem.hpp"\n',
        "oracle/bounds.cpp": '#include "oracle/bounds.hpp"\n',
        "oracle/harness/implementation.hpp": '#include "../problem.hpp"\n',
        "include/tilewise/harness.hpp": '#include "../../oracle/harness/implementation.hpp"\n',
        "cpu/simd.hpp": '#include "core/dtype.hpp"\n',
        "cuda/device/mask.cuh": '#include "core/dtype.hpp"\n',
        "cuda/kernels/sm80.cu": '#include "cuda/device/mask.cuh"\n',
        "cuda/emulator/emulator.hpp": '#include "core/status.hpp"\n',
        "stages/stage.hpp": '#include "oracle/problem.hpp"\n',
        "stages/cuda_adapter.hpp": '#include "cuda/emulator/emulator.hpp"\n',
        "stages/3_fa1_cuda/3a.cu": '#include "cuda/device/mask.cuh"\n',
        "stages/1_naive/1a.cpp": '#include "stages/stage.hpp"\n',
        "stages/2_online/2c.cpp": '#include "stages/stage.hpp"\n#include "cpu/simd.hpp"\n',
        "tools/table.cpp": '#include "stages/stage.hpp"\n#include <tilewise/harness.hpp>\n',
        "tests/core_test.cpp": '#include "core/dtype.hpp"\n#include "tools/table.cpp"\n',
    }
    # ... and lines that each break one rule when added to one of its files.
    PLANTED = [
        ("core/status.hpp", '#include "../oracle/problem.hpp"'),
        ("core/status.hpp", "#include <vector>"),
        ("core/status.hpp", '#include "core/dtype.hpp"'),
        ("core/status.hpp", '#include "gone.hpp"'),
        ("oracle/bounds.hpp", '#include "oracle/problem.hpp"'),
        ("oracle/bounds.cpp", '#include "stages/stage.hpp"'),
        ("oracle/bounds.cpp", '  #  include  "cpu/simd.hpp"'),
        ("cpu/simd.hpp", '#include "oracle/problem.hpp"'),
        ("cpu/simd.hpp", "#include <tilewise/harness.hpp>"),
        ("cuda/kernels/sm80.cu", '#include "oracle/problem.hpp"'),
        ("include/tilewise/harness.hpp", '#include "../../stages/stage.hpp"'),
        ("stages/stage.hpp", '#include "oracle/bounds.hpp"'),
        ("stages/stage.hpp", '#include "tests/core_test.cpp"'),
        ("stages/1_naive/1a.cpp", '#include "stages/2_online/2c.cpp"'),
        ("stages/1_naive/1a.cpp", '#include "../2_online/2c.cpp"'),
        ("stages/1_naive/1a.cpp", '#include "cuda/kernels/sm80.cu"'),
        ("stages/3_fa1_cuda/3a.cu", '#include "cuda/emulator/emulator.hpp"'),
        ("stages/3_fa1_cuda/3a.cu", '#include "cuda/kernels/sm80.cu"'),
        ("stages/stage.hpp", '#include "cuda/emulator/emulator.hpp"'),
    ]

    def test_the_rules_accept_a_tree_that_keeps_them(self):
        self.assertEqual(self.judged(self.TREE), [])

    def test_every_planted_violation_is_found(self):
        for name, line in self.PLANTED:
            with self.subTest(name=name, line=line):
                tree = dict(self.TREE)
                tree[name] += line + "\n"
                found = self.judged(tree)
                self.assertEqual([each.split(":")[0] for each in found], [name])

    def test_this_tree_keeps_the_rules(self):
        self.assertTrue((ROOT / "core" / "dtype.hpp").is_file())
        self.assertEqual(violations(ROOT), [], "includes against the design's arrows")

    @staticmethod
    def judged(tree):
        with tempfile.TemporaryDirectory() as directory:
            for name, text in tree.items():
                path = Path(directory) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            return violations(Path(directory))


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main()
