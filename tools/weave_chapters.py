#!/usr/bin/env python3
"""Fills the course's pages from what they talk about: code from the compiled files, numbers from a tour.

    python3 tools/weave_chapters.py                              the code
    python3 tools/weave_chapters.py --tour build/tour/tour.json  the code and the numbers
    python3 tools/weave_chapters.py --check [--tour FILE]        changes nothing; 1 if a page is stale

In a page, between a pair of marks, everything is written by this program:

    <!-- snippet: FILE NAME -->       lines of FILE between `[snippet NAME]` and `[end NAME]`
    <!-- /snippet -->                 (FILE from the page's folder, or from the repository's)
    <!-- measured: 2 -->              the tour's numbers of the steps whose names start with 2
    <!-- /measured -->
    <!-- ladder -->                   every step of the course with its idea and numbers
    <!-- /ladder -->
    <!-- terminal: A B -->            what the tour printed (tour.txt beside tour.json), of the
                                      implementations only A and B; without names, of all
    <!-- /terminal -->

Without --tour the numbers stay as they are. Python's standard library only.
"""

import argparse
import json
import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/*.md", "stages/README.md", "stages/*/README.md")
LANGUAGES = {".cpp": "cpp", ".hpp": "cpp", ".cu": "cpp", ".cuh": "cpp", ".py": "python",
             ".c": "c", ".h": "c", ".sh": "sh", ".cmake": "cmake", ".txt": "text"}


class Stale(Exception):
    """A mark that cannot be filled: what is wrong, and where."""


# ---- code ---------------------------------------------------------------------------------------

def snippet(path, name):
    """The lines of a file between its `[snippet NAME]` and `[end NAME]`, without their common
    indentation; marks of other snippets inside are left out."""
    mark = re.compile(r"^\s*(?://|#)\s*\[(snippet|end) (\w+)\]\s*$")
    lines, inside, found = [], False, False
    for line in path.read_text(encoding="utf-8").splitlines():
        hit = mark.match(line)
        if hit:
            if hit.group(2) == name:
                inside = hit.group(1) == "snippet"
                found = found or inside
        elif inside:
            lines.append(line)
    if not found:
        raise Stale("%s has no [snippet %s]" % (path.relative_to(ROOT), name))
    if inside:
        raise Stale("[snippet %s] of %s has no [end %s]" % (name, path.relative_to(ROOT), name))
    return textwrap.dedent("\n".join(lines)).strip("\n")


def code_block(page, argument):
    words = argument.split()
    if len(words) != 2:
        raise Stale("a snippet mark reads <!-- snippet: FILE NAME -->, not %r" % argument)
    path = next((folder / words[0] for folder in (page.parent, ROOT)
                 if (folder / words[0]).is_file()), None)
    if path is None:
        raise Stale("there is no file %s" % words[0])
    suffix = ".cmake" if path.name == "CMakeLists.txt" else path.suffix
    return "```%s\n%s\n```" % (LANGUAGES.get(suffix, ""), snippet(path.resolve(), words[1]))


# ---- numbers ------------------------------------------------------------------------------------

def get(record, *keys):
    """record[keys[0]][keys[1]]..., or None where something is absent."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def amount(value, units, step):
    """1536 with units B, KiB, MiB in steps of 1024 is "1.5 KiB"."""
    if not is_number(value):
        return "-"
    index = 0
    while abs(value) >= step and index + 1 < len(units):
        value, index = value / step, index + 1
    return "%s %s" % (("%d" if index == 0 or abs(value) >= 100 else "%.1f") % value, units[index])


def bytes_text(value):
    return amount(value, ("B", "KiB", "MiB", "GiB"), 1024.0)


def time_text(seconds):
    return amount(seconds * 1e6, ("us", "ms", "s"), 1000.0) if is_number(seconds) else "-"


def plain(value, form="%.2f"):
    if not is_number(value):
        return "-"
    text = form % value
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text  # no "-0.00"


def output_of(run, name):
    for output in get(run, "verdict", "outputs") or []:
        if output.get("name") == name and output.get("present"):
            return output
    return {}


def error_text(run, names):
    """The largest error among these outputs, and how much of its bound it takes."""
    present = [output for output in (output_of(run, name) for name in names) if output]
    errors = [output["max_error"] for output in present if is_number(output.get("max_error"))]
    ratios = [output["max_ratio"] for output in present if is_number(output.get("max_ratio"))]
    if not present:
        return "-"
    if len(errors) < len(present):
        return "not finite"
    return "%.1e (%s of bound)" % (max(errors), plain(max(ratios, default=None)))


def memory_text(run):
    memory = get(run, "verdict", "memory") or {}
    return bytes_text(memory.get("total")) if memory.get("measured") else "-"


def step_of(name):
    """"stage.2c_simd" is 2c_simd; anything else is not a step."""
    return name[len("stage."):] if name.startswith("stage.") else None


def runs_of(tour, prefix, tensors):
    return [run for run in tour.get("runs", [])
            if (step_of(run.get("implementation", "")) or "").startswith(prefix)
            and run.get("tensors", "normal") == tensors]


def table(head, rows, right_from=1):
    lines = ["| " + " | ".join(head) + " |",
             "|" + "|".join("---" if i < right_from else "--:" for i in range(len(head))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def slopes_text(run):
    return " / ".join(plain(run.get(key)) for key in ("slope_q", "slope_k", "slope_both"))


def machine_text(tour):
    machine = tour.get("machine", {})
    parts = [str(machine["cpu"])] if machine.get("cpu") else []
    if machine.get("cores"):
        parts.append("%s cores" % machine["cores"])
    if machine.get("compiler"):
        parts.append(str(machine["compiler"]))
    if is_number(machine.get("peak_gflops")):
        one = machine.get("peak_gflops_one_core")
        parts.append("measured ceiling %.0f GFLOP/s of all cores" % machine["peak_gflops"]
                     + (" (%.0f of one)" % one if is_number(one) else ""))
    if machine.get("date"):
        parts.append(str(machine["date"]))
    return "Measured on: " + ", ".join(parts) + "." if parts else ""


def percent(fraction):
    return "%.1f %%" % (100 * fraction) if is_number(fraction) else "-"


def measured(tour, prefix):
    """A chapter's table, one row a step, and the problems they were measured on."""
    runs = runs_of(tour, prefix, "normal")
    if not runs:
        raise Stale("the tour has no run of a step %s*" % prefix)
    head = ["step", "error of O", "of LSE", "of the gradients", "extra memory",
            "slope in seqlen_q / seqlen_k / both", "bytes moved, by the formula", "time",
            "GFLOP/s", "of the ceiling"]
    rows = []
    for run in runs:
        rows.append([step_of(run["implementation"]), error_text(run, ["o"]),
                     error_text(run, ["lse"]), error_text(run, ["dq", "dk", "dv"]),
                     memory_text(run), slopes_text(run),
                     bytes_text(get(run, "verdict", "bytes_moved")),
                     time_text(get(run, "verdict", "time", "median")),
                     plain(run.get("gflops"), "%.1f"), percent(run.get("fraction_of_peak"))])
    problems = []
    for run in runs:
        problem = get(run, "verdict", "problem")
        if problem and problem not in problems:
            problems.append(problem)
    text = table(head, rows)
    if problems:
        text += "\n\nProblems: " + "; ".join("`%s`" % problem for problem in problems) + "."
    real = runs_of(tour, prefix, "real")
    failed = [step_of(run["implementation"]) for run in real
              if get(run, "verdict", "state") != "pass"]
    if real:
        text += " On a real transformer's tensors: " + (
            "not accepted: %s." % ", ".join(failed) if failed else "all accepted.")
    return text + ("\n\n" + machine_text(tour) if machine_text(tour) else "")


def ladder(tour):
    """Every step that ran, and those that did not, with the reason."""
    rows = []
    for run in runs_of(tour, "", "normal"):
        step = step_of(run["implementation"])
        if not step:
            continue
        rows.append([step, run.get("idea", ""), str(get(run, "verdict", "state") or "-"),
                     error_text(run, ["o"]), plain(run.get("slope_both")), memory_text(run),
                     time_text(get(run, "verdict", "time", "median")),
                     percent(run.get("fraction_of_peak"))])
    for row in tour.get("not_run", []):
        step = step_of(row.get("implementation", ""))
        if step:
            rows.append([step, row.get("idea", ""), row.get("why", "-")] + ["-"] * 5)
    if not rows:
        raise Stale("the tour has no steps")
    head = ["step", "idea", "verdict", "error of O", "slope of memory", "extra memory", "time",
            "of the ceiling"]
    text = table(head, rows, right_from=3)
    return text + ("\n\n" + machine_text(tour) if machine_text(tour) else "")


def terminal(tour, names):
    """What the tour printed, as it stood on the terminal; of the implementations only those named
    (none: all), with `...` where some are left out."""
    lines, kept, shown = [], set(names.split()), True
    for line in tour["terminal"].strip("\n").split("\n"):
        heading = re.match(r"([a-z]+\.[a-z0-9_]+): ", line)
        if heading:
            shown = not kept or heading.group(1) in kept
            if not shown and lines[-1] != "...":
                lines.append("...")
        elif not line:
            shown = True
        if shown:
            lines.append(line)
    return "```\n%s\n```" % "\n".join(lines)


# ---- pages --------------------------------------------------------------------------------------

MARK = re.compile(r"^<!-- (snippet|measured|ladder|terminal)(?:: ([^>]*?))? -->[ \t]*\n(.*?)^<!-- /\1 -->[ \t]*$",
                  re.MULTILINE | re.DOTALL)
OPENING = re.compile(r"^<!-- (snippet|measured|ladder|terminal)\b", re.MULTILINE)


def woven(page, text, tour):
    """The page's text with every mark filled."""
    def fill(hit):
        kind, argument, old = hit.group(1), (hit.group(2) or "").strip(), hit.group(3)
        if OPENING.search(old):
            raise Stale("the mark `%s %s` is not closed" % (kind, argument))
        if kind == "snippet":
            new = code_block(page, argument)
        elif tour is None:
            return hit.group(0)
        elif kind == "measured":
            new = "\n" + measured(tour, argument) + "\n"
        elif kind == "terminal":
            new = terminal(tour, argument)
        else:
            new = "\n" + ladder(tour) + "\n"
        opening = hit.group(0).split("\n", 1)[0].rstrip()
        return "%s\n%s\n<!-- /%s -->" % (opening, new, kind)

    result = MARK.sub(fill, text)
    if len(OPENING.findall(text)) != len(MARK.findall(text)):
        raise Stale("a mark is opened and not closed")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tour", type=pathlib.Path, help="tour.json: fill in the numbers too")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if a page is stale")
    parser.add_argument("pages", nargs="*", type=pathlib.Path, help="default: every chapter")
    options = parser.parse_args()

    tour = None
    if options.tour:
        try:
            tour = json.loads(options.tour.read_text(encoding="utf-8"))
            tour["terminal"] = options.tour.with_suffix(".txt").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            print("%s: no tour to read (%s)" % (options.tour, error), file=sys.stderr)
            return 2
    pages = [page.resolve() for page in options.pages]
    if not pages:
        pages = sorted(page for pattern in PAGES for page in ROOT.glob(pattern))

    stale = []
    for page in pages:
        name = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
        try:
            text = page.read_text(encoding="utf-8")
            new = woven(page, text, tour)
        except (OSError, Stale) as error:
            print("%s: %s" % (name, error), file=sys.stderr)
            return 2
        if new == text:
            continue
        stale.append(str(name))
        if not options.check:
            page.write_text(new, encoding="utf-8")
            print("woven: %s" % name)
    if options.check and stale:
        print("stale, run python3 tools/weave_chapters.py: " + ", ".join(stale), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
