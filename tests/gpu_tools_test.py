#!/usr/bin/env python3
"""The tools about GPUs that need none: tools/draw_timeline.py on a small timeline,
tools/check_sass.py on small machine code."""

import re
import sys
import unittest
import xml.etree.ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
sys.dont_write_bytecode = True
import check_sass  # noqa: E402
import draw_timeline  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def event(warp, name, tile, begin, end, block=0):
    return {"block": block, "warp": warp, "name": name, "tile": tile, "begin": begin, "end": end}


def timeline(*events):
    return {"step": "5x_step", "problem": "fwd s128 h1 d64 f16", "device": "GPU <1>",
            "blocks": [{"block": 0, "multiprocessor": 3, "nanoseconds": 0}],
            "clocks_a_nanosecond": 2.0, "events": list(events)}


class DrawTimeline(unittest.TestCase):
    # A producer and a consumer whose wgmma is under way while it computes softmax.
    pipeline = timeline(event(0, "load K", 1, 0, 100), event(0, "load K", 2, 100, 220),
                        event(4, "S = Q K^T", 1, 100, 400), event(4, "softmax", 1, 200, 500),
                        event(5, "softmax", 1, 210, 510), event(4, "barrier & wait", 0, 600, 600))

    def drawn(self, *arguments, **named):
        return xml.etree.ElementTree.fromstring(draw_timeline.draw(*arguments, **named))

    def spans(self, svg):
        """Of every event drawn: its tooltip, and where."""
        return {group.find(SVG + "title").text:
                [float(group.find(SVG + "rect").get(key)) for key in ("x", "y", "width")]
                for group in svg.iter(SVG + "g") if group.find(SVG + "rect") is not None}

    def test_spans_lie_at_their_times(self):
        spans = self.spans(self.drawn(self.pipeline))
        self.assertEqual(len(spans), 4)  # of a warpgroup its first warp
        scale = (draw_timeline.WIDTH - draw_timeline.LEFT) / 600
        for what, (x, _, width) in spans.items():
            begin, end = (int(number) for number in re.search(r"(\d+) to (\d+)", what).groups())
            self.assertAlmostEqual(x, draw_timeline.LEFT + begin * scale, delta=0.1)
            self.assertAlmostEqual(width, max(1, (end - begin) * scale), delta=0.1)

    def test_points_are_marked(self):
        svg = self.drawn(self.pipeline)
        points = [group.find(SVG + "title").text for group in svg.iter(SVG + "g")
                  if group.find(SVG + "path") is not None]
        self.assertEqual(points, ["barrier & wait 0: 600"])

    def test_what_overlaps_has_its_own_line(self):
        spans = self.spans(self.drawn(self.pipeline))
        line = {what.split(" 1:")[0]: y for what, (_, y, _) in spans.items()}
        self.assertNotEqual(line["S = Q K^T"], line["softmax"])
        self.assertLess(line["load K"], line["S = Q K^T"])

    def test_rows_can_be_warps(self):
        svg = self.drawn(self.pipeline, by_warpgroup=False)
        self.assertLessEqual({"warp 0", "warp 4", "warp 5"},
                             {text.text for text in svg.iter(SVG + "text")})

    def test_a_part(self):
        spans = self.spans(self.drawn(self.pipeline, begin=150, end=300))
        self.assertEqual({what.split(":")[0] for what in spans},
                         {"load K 2", "S = Q K^T 1", "softmax 1"})

    def test_one_block(self):
        two = timeline(event(0, "a", 0, 0, 5), event(0, "b", 0, 0, 9, block=7))
        self.assertEqual(list(self.spans(self.drawn(two, block=7))), ["b 0: 0 to 9"])
        with self.assertRaises(SystemExit):
            draw_timeline.draw(two, block=8)

    def test_says_in_words_what_it_shows(self):
        svg = self.drawn(self.pipeline)
        words = svg.find(SVG + "desc").text
        self.assertIn("2 rows: warpgroup 0, warpgroup 1.", words)
        self.assertIn("load K 2 times, 110 clocks each on average, 100 % of the row's time", words)
        self.assertEqual(svg.get("role"), "img")
        self.assertIn("barrier & wait", [text.text for text in svg.iter(SVG + "text")])

    def test_dark_pages_and_nothing_from_elsewhere(self):
        text = draw_timeline.draw(self.pipeline)
        self.assertIn("prefers-color-scheme:dark", text)
        self.assertNotRegex(text.replace('xmlns="http://www.w3.org/2000/svg"', ""), "https?://")

    def test_axis_steps_are_round(self):
        for length, step in ((7, 1), (9, 2), (600, 100), (90000, 20000), (1, 1)):
            self.assertEqual(draw_timeline.step_of(length), step, length)


def sass(*instructions, architecture="sm_90a", name="kernel"):
    lines = [f"arch = {architecture}", f"\t\tFunction : {name}"]
    lines += [f"        /*{16 * n:04x}*/    {text} ;   /* 0x0000000000147886 */"
              for n, text in enumerate(instructions)]
    kernels = {}
    check_sass.read_sass("\n".join(lines), kernels)
    usage = f"arch = {architecture}\n Function {name}:\n  REG:168 STACK:8 SHARED:1024 LOCAL:0"
    check_sass.read_resources(usage, kernels)
    return list(kernels.values())


class CheckSass(unittest.TestCase):
    def test_counts(self):
        kernel, = sass("HGMMA.64x128x16.F32 R24, R4, gdesc[UR4].tnspB, R24, gsb0",
                       "@!P0 STL [R1], R2", "MUFU.EX2 R5, R6", "MUFU.RCP R5, R6",
                       "@UP0 UTMALDG.4D [UR8], [UR4]")
        for what, count in (("HGMMA", 1), ("STL", 1), ("MUFU.EX2", 1), ("MUFU", 2), ("UTMALDG", 1),
                            ("HG", 0), ("REG", 168), ("STACK", 8)):
            self.assertEqual(kernel.count(what), count, what)

    def broken(self, rule, kernels):
        return [sentence for one in check_sass.rules_of(rule, "rules")
                for sentence in one.broken(kernels)]

    def test_rules(self):
        kernels = sass("HGMMA.64x64x16.F32 R24, gdesc[UR4], R24, gsb0", "LDL R2, [R1]")
        self.assertEqual(self.broken("# nothing\nsm_90a ker.el HGMMA>=1 LDL<=1 STL=0", kernels), [])
        self.assertIn("LDL is 1, expected = 0 (rules:1)",
                      self.broken("sm_90a kernel LDL=0", kernels)[0])
        self.assertIn("HGMMA is 1, expected >= 2",
                      self.broken("sm_90a kernel HGMMA>=2", kernels)[0])
        for nobody in ("sm_80 kernel LDL=0", "sm_90a other LDL=0"):
            self.assertIn("no kernel", self.broken(nobody, kernels)[0])
        with self.assertRaises(SystemExit):
            check_sass.rules_of("sm_90a kernel HGMMA>=", "rules")

    def test_names(self):
        for name, short in (("void a::b<c, (d)1>(int, e*)", "a::b<c, (d)1>"), ("k", "k"),
                            ("void (anonymous namespace)::k<2>(f)", "(anonymous namespace)::k<2>")):
            self.assertEqual(check_sass.without_parameters(name), short)

    def overwritten(self, *instructions):
        kernel, = sass(*instructions)
        return check_sass.overwritten(kernel)

    PV = "HGMMA.64x64x16.F32 R24, R4, gdesc[UR4].tnspB, R24, gsb0"
    QK = "HGMMA.64x64x16.F32 R56, gdesc[UR8], RZ, !UPT, gsb0"

    def test_registers_are_free_behind_the_wait(self):
        self.assertEqual(self.overwritten(self.PV, "FADD R8, R9, R10", "STG.E [R4.64], R5",
                                          "WARPGROUP.DEPBAR.LE gsb0, 0x0",
                                          "F2FP.F16.F32.PACK_AB R4, R9, R10", "EXIT"), [])
        # Q K^T was issued first, and is waited for alone.
        self.assertEqual(self.overwritten(self.QK, self.PV, "WARPGROUP.DEPBAR.LE gsb0, 0x1",
                                          "FADD R56, R56, R57", "EXIT"), [])

    def test_overwritten_operands_are_found(self):
        for write in ("F2FP.F16.F32.PACK_AB R7, R9, R10", "LDS.128 R4, [R9]", "@P0 MOV R5, R9",
                      "IMAD.WIDE R6, R9, R10, R12", "FMUL R55, R55, R9"):
            found = self.overwritten(self.QK, self.PV, "WARPGROUP.DEPBAR.LE gsb0, 0x1", write,
                                     "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT")
            self.assertEqual(len(found), 1, write)
            self.assertIn("at 0x30 writes R", found[0])

    def test_around_a_loop(self):
        # Under way at the end of the loop's body, overwritten at its beginning.
        found = self.overwritten("MOV R4, R9", self.PV, "@P0 BRA 0x0",
                                 "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT")
        self.assertEqual(len(found), 1)
        self.assertIn("MOV at 0x0 writes R4", found[0])


if __name__ == "__main__":
    unittest.main()
