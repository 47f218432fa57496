#!/usr/bin/env python3
"""What c_interface.py reads off the header is what the C compiler makes of it: the size of every
struct and the place of every field."""

import ctypes
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from c_interface import HEADER, Header  # noqa: E402


class CInterface(unittest.TestCase):
    def test_structs_are_the_compilers(self):
        header = Header()
        self.assertIn("tilewise_attention", header.structs)
        lines, expected = [], []
        for name, struct in header.structs.items():
            lines.append(f'printf("%zu\\n", sizeof({name}));')
            expected.append(ctypes.sizeof(struct))
            for field, *_ in struct._fields_:
                lines.append(f'printf("%zu\\n", offsetof({name}, {field}));')
                expected.append(getattr(struct, field).offset)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "sizes.c")
            source.write_text("#include <stdio.h>\n#include <tilewise/tilewise.h>\n"
                              "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
            program = Path(folder, "sizes")
            subprocess.run([os.environ.get("CC", "cc"), "-std=c99", f"-I{HEADER.parent.parent}",
                            str(source), "-o", str(program)], check=True)
            printed = subprocess.run([str(program)], check=True, capture_output=True, text=True)
        self.assertEqual([int(line) for line in printed.stdout.split()], expected)

    def test_constants_are_numbers(self):
        constants = Header().constants
        self.assertEqual(constants["TILEWISE_CUDA"], 2)
        self.assertEqual(constants["TILEWISE_MAX_DIMS"], 5)


if __name__ == "__main__":
    unittest.main()
