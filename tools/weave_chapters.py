#!/usr/bin/env python3
"""Fills the course's pages from what they talk about: code from the compiled files, a GPU's numbers
from docs/results, all others from a tour.

    python3 tools/weave_chapters.py                              the code, and the GPU's numbers
    python3 tools/weave_chapters.py --tour build/tour/tour.json  the tour's numbers too
    python3 tools/weave_chapters.py --check [--tour FILE]        changes nothing; 1 if a page is stale

In a page, between a pair of marks, everything is written by this program:

    <!-- snippet: FILE NAME -->       lines of FILE between `[snippet NAME]` and `[end NAME]`
    <!-- /snippet -->                 (FILE from the page's folder, or from the repository's)
    <!-- gpu: 4 -->                   seconds and bytes of the steps whose names start with 4, from
    <!-- /gpu -->                     docs/results/gpu-*.json: an H100's, if there is one; or, with
                                      "ladder", the speed of every forward step, or with "speed"
                                      what tests/gpu/speed.py measured
    <!-- measured: 2 -->              the tour's numbers of the steps whose names start with 2
    <!-- /measured -->
    <!-- ladder -->                   every step of the course with its idea and numbers
    <!-- /ladder -->
    <!-- terminal: A B -->            what the tour printed (tour.txt beside tour.json), of the
                                      implementations only A and B; without names, of all
    <!-- /terminal -->

Without --tour the tour's numbers stay as they are. Python's standard library only.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import textwrap
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/*.md", "stages/README.md", "stages/*/README.md",
         "cuda/kernels/README.md")
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


# A chapter's shipped kernel, as the last of its steps: "~" sorts behind letters.
SHIPPED = {"sm80": "4~sm80", "sm90": "5~sm90"}


def on_gpu_step(name):
    """The same of an implementation on a GPU; "cuda.sm80" is the step that chapter 4 ends with,
    "cuda.sm90" chapter 5's."""
    return SHIPPED.get(name.split(".")[-1]) or step_of(name)


def label_of(step):
    return step.split("~")[-1]


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


# ---- a GPU's numbers ----------------------------------------------------------------------------

class Cell(typing.NamedTuple):
    """What of a problem's line a table is about: equal for one problem, whoever measured it."""
    kind: str  # fwd, bwd, or decode: forward with one query
    dtype: str
    batch: int
    heads: tuple  # of queries, of keys
    queries: int
    keys: int
    d: int
    causal: bool

    def flops(self):
        """As Problem::flops counts: two for a multiply-add, none for what the mask hides."""
        seen = [i + 1 + self.keys - self.queries if self.causal else self.keys
                for i in range(self.queries)]
        pairs = sum(min(max(n, 0), self.keys) for n in seen)
        return self.batch * self.heads[0] * pairs * self.d * (14 if self.kind == "bwd" else 4)

    def bytes_of_keys(self):
        """Of K and V, each read once: what decoding waits for."""
        size = 4 if self.dtype == "f32" else 2
        return 2 * self.batch * self.heads[1] * self.keys * self.d * size

    def heads_text(self):
        heads = "%d" % self.heads[0]
        if self.heads[0] != self.heads[1]:
            heads += " over %d" % self.heads[1]
        return ("%d x " % self.batch if self.batch > 1 else "") + heads + " heads"

    def size_text(self):
        if self.kind == "decode":
            return "%d keys, d %d" % (self.keys, self.d)
        lengths = ("N %d" % self.keys if self.keys == self.queries
                   else "%d queries, %d keys" % (self.queries, self.keys))
        return "%s, d %d%s" % (lengths, self.d, ", causal" if self.causal else "")


def cell_of(problem):
    """`fwd b2 sq1 sk1024 hq32 hk8 d64 f16`, `fwd s1024 h4 d64 causal`; or as older files have naive
    attention's, all float32, pass:batch,heads,N,d,causal."""
    short = re.fullmatch(r"(fwd|bwd):(\d+),(\d+),(\d+),(\d+),([01])", problem)
    if short:
        batch, heads, n, d, causal = (int(x) for x in short.groups()[1:])
        return Cell(short.group(1), "f32", batch, (heads, heads), n, n, d, bool(causal))
    words = problem.split()
    size = dict(re.fullmatch(r"([a-z]+)(\d+)", word).groups() for word in words[1:]
                if re.fullmatch(r"(b|s|sq|sk|h|hq|hk|d)\d+", word))
    size = {"b": 1, "sq": size.get("s"), "sk": size.get("s"), "hq": size.get("h", 1),
            "hk": size.get("h", 1), "d": None, **size}
    try:
        batch, queries, keys, heads_q, heads_k, d = (
            int(size[key]) for key in ("b", "sq", "sk", "hq", "hk", "d"))
    except TypeError:
        raise Stale("no problem of a GPU's table: %r" % problem) from None
    dtype = next((word for word in words if word in ("f16", "bf16")), "f32")
    kind = "decode" if words[0] == "fwd" and queries == 1 else words[0]
    return Cell(kind, dtype, batch, (heads_q, heads_k), queries, keys, d, "causal" in words)


def three_digits(value):
    if not is_number(value):
        return "-"
    return "%.*f" % (0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3, value)


def speed_text(cell, seconds):
    """Milliseconds / TFLOP/s; of decoding, which is reading, milliseconds / GB/s."""
    if seconds is None:
        return "-"
    rate = cell.bytes_of_keys() / 1e9 if cell.kind == "decode" else cell.flops() / 1e12
    return "%s / %s" % (three_digits(1e3 * seconds), three_digits(rate / seconds))


def seconds_of_steps(benchmark):
    """{cell: {"3a": seconds, ...}}, in the order in which they were measured."""
    cells = {}
    for row in benchmark.get("rows") or []:
        step = on_gpu_step(row["implementation"])
        if step:
            cells.setdefault(cell_of(row["problem"]), {})[step.split("_")[0]] = row["seconds"]
    return cells


def seconds_of_peer(benchmark, name):
    return {cell_of(row["problem"]): get(row, "seconds", "median")
            for row in get(benchmark, name, "rows") or []}


def speed_table(cells, chapter, naive, flash):
    """Of problems of one kind and dtype: a row each, a column each step of the chapter. Before them
    naive attention and the step that the first of them comes after; behind them PyTorch's flash
    backend. In 16 bits, each step's speed over the step before it."""
    all_steps = sorted({step for cell in cells.values() for step in cell})
    steps = [step for step in all_steps if step.startswith(chapter)]
    earlier = [step for step in all_steps if step < steps[0]][-1:]
    kind, dtype = next(iter(cells))[:2]
    one_size = len({cell.heads_text() for cell in cells}) == 1
    head = ["%s, %s%s: ms / %s" % (
        kind, dtype, ", " + next(iter(cells)).heads_text() if one_size else "",
        "GB/s of K and V" if kind == "decode" else "TFLOP/s")]
    ratios = dtype != "f32" and len(earlier + steps) > 1
    head[0] += " / times as fast as the step before" if ratios else ""
    with_naive = any(cell in naive for cell in cells)
    with_flash = any(cell in flash for cell in cells)
    head += ["naive"] * with_naive + earlier + [label_of(step) for step in steps]
    head += ["PyTorch's flash", "%s, times as fast" % label_of(steps[-1])] * with_flash
    rows = []
    for cell, seconds in cells.items():
        row = [cell.size_text() + ("" if one_size else ", " + cell.heads_text())]
        row += [speed_text(cell, naive.get(cell))] * with_naive
        for before, step in zip([None, *(earlier + steps)], earlier + steps):
            text = speed_text(cell, seconds.get(step))
            if ratios and step in seconds:
                over = seconds[before] / seconds[step] if before in seconds else None
                text += " / " + plain(over)
            row.append(text)
        if with_flash:
            of_flash, of_last = flash.get(cell), seconds.get(steps[-1])
            row += [speed_text(cell, of_flash), plain(of_flash / of_last if of_flash and of_last
                                                      else None)]
        rows.append(row)
    return table(head, rows)


def table_of_steps(title, columns, records):
    """A row each step, a column each of (heading, text of a record) that any step has."""
    def text(make, record):
        try:
            return make(record)
        except (KeyError, TypeError, ZeroDivisionError):  # not measured
            return "-"

    rows = []
    for step, record in sorted(records.items()):
        cell = cell_of(record["problem"])
        rows.append(["%s: %s %s, %s" % (label_of(step).split("_")[0], cell.kind, cell.size_text(),
                                        cell.heads_text())]
                    + [text(make, record) for _, make in columns])
    there = [n + 1 for n in range(len(columns)) if any(row[n + 1] != "-" for row in rows)]
    return table([title] + [columns[n - 1][0] for n in there],
                 [[row[0]] + [row[n] for n in there] for row in rows])


def traffic_table(records):
    """Of one call of each step: bytes by the formula, and as ncu counted them."""
    def megabytes(*names):
        def text(record):  # a formula of 0: none was worked out
            if not all(record[name] for name in names):
                raise KeyError(names)
            return "%.1f" % (sum(record[name] for name in names) / 1e6)
        return text

    return table_of_steps("one call, in MB", [
        ("by the formula", megabytes("formula_bytes")),
        ("asked of the second-level cache", megabytes("l2_bytes_read", "l2_bytes_written")),
        ("read from HBM", megabytes("hbm_bytes_read"))], records)


def busy_table(records):
    """Of a call that fills the GPU: what it keeps busy."""
    def percent_of(name):
        return lambda record: "%.0f %%" % record[name]

    return table_of_steps("busy, of a call that fills the GPU", [
        ("multiprocessors", percent_of("sm_percent")),
        ("tensor cores", percent_of("tensor_percent")),
        ("HBM", percent_of("hbm_percent")),
        ("passes over the banks, of the fewest that would do",
         lambda record: plain(record["shared_passes"] / record["shared_least_passes"]))], records)


def peers_text(benchmark):
    """Who the peers are, or why they are not there."""
    texts = []
    for name, what in (("naive", "naive is PyTorch %s's `math` backend without TF32"),
                       ("flash", "PyTorch's flash is %s's, by `scaled_dot_product_attention`")):
        peer = benchmark.get(name)
        if get(peer, "rows"):
            texts.append(what % peer["torch"])
        elif peer:
            texts.append("no %s: %s" % (name, peer.get("why", "not measured")))
    return "; ".join(texts)


def gpu_ladder(results, link):
    """Every forward step that is timed, the shipped kernel behind its chapter's, and PyTorch's
    flash: TFLOP/s at N 4096, d 128, in the step's numbers."""
    benchmark = results.get("benchmark") or {}
    flash = seconds_of_peer(benchmark, "flash")
    names = {step.split("_")[0]: step.replace("_", " ") for step in map(
        lambda row: step_of(row["implementation"]), benchmark.get("rows") or []) if step}
    names.update({step: "the shipped kernel, " + name for name, step in SHIPPED.items()})
    speeds = {}  # {step: {causal: TFLOP/s}}
    for cell, seconds in seconds_of_steps(benchmark).items():
        if (cell.kind, cell.queries, cell.keys, cell.d) != ("fwd", 4096, 4096, 128):
            continue
        steps = {**seconds, **({"~PyTorch's flash": flash[cell]} if flash.get(cell) else {})}
        for step, took in steps.items():
            row = speeds.setdefault(step, {"dtype": cell.dtype})
            row[cell.causal] = cell.flops() / 1e12 / took
    if not speeds:
        return "Not measured on a GPU yet."
    rows, before = [], None
    for step, row in sorted(speeds.items()):
        over = row[False] / before if before and False in row else None
        rows.append([names.get(step, label_of(step)), row["dtype"], three_digits(row.get(False)),
                     three_digits(row.get(True)), plain(over)])
        before = row.get(False)
    date = get(results, "dates", "benchmark4")
    under = "%s%s; N 4096, d 128, 16 heads. [All results](%s)." % (
        get(results, "machine", "name") or "an unknown GPU", ", " + date if date else "", link)
    head = ["step", "numbers", "TFLOP/s, full", "causal", "times as fast as the row above"]
    return table(head, rows, right_from=2) + "\n\n" + under


def gpu_speed(*_):
    """tests/gpu/speed.py's tables of what it has measured, calls of the same kernels beside the same
    backends together."""
    sys.path.insert(0, str(ROOT / "tests" / "gpu"))
    import speed
    groups = {}
    for path in sorted((ROOT / "docs" / "results").glob("speed-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        measured = sorted({name for cell in run["cells"] for name in cell["ratios"]} |
                          {cell.get("implementation", "cuda.sm80") for cell in run["cells"]})
        groups.setdefault(tuple(measured), []).append(run)
    if not groups:
        return "Not measured on a GPU yet."
    return "\n\n".join(
        "%s on %s, PyTorch %s, %s; calls of the script: %d, rounds in each: %s.\n\n%s" % (
            " and ".join(name for name in measured if name.startswith("cuda.")), runs[0]["gpu"], runs[0]["torch"], runs[0]["dtype"], len(runs),
            ", ".join(str(run["rounds"]) for run in runs), speed.table(runs))
        for measured, runs in groups.items())


def gpu_results():
    paths = sorted((ROOT / "docs" / "results").glob("gpu-*.json"))
    if not paths:
        raise Stale("there is no docs/results/gpu-*.json")
    path = next((path for path in paths if "h100" in path.name), paths[0])
    return path, json.loads(path.read_text(encoding="utf-8"))


def on_gpu(results, link, chapter):
    """A chapter's tables: speed, one for each kind of problem and dtype; bytes; what is busy."""
    benchmark = results.get("benchmark") or {}
    cells = {cell: seconds for cell, seconds in seconds_of_steps(benchmark).items()
             if any(step.startswith(chapter) for step in seconds)}
    naive, flash = (seconds_of_peer(benchmark, name) for name in ("naive", "flash"))
    groups = {}
    for cell, seconds in cells.items():
        groups.setdefault((cell.kind, cell.dtype), {})[cell] = seconds
    texts = [speed_table(group, chapter, naive, flash) for group in groups.values()]
    traffic = {SHIPPED.get(step, step): row
               for step, row in (results.get("traffic") or {}).items() if "problem" in row}
    traffic = {step: row for step, row in traffic.items() if step.startswith(chapter)}
    if traffic:
        texts.append(traffic_table(traffic))
    busy = {step: row["busy"] for step, row in traffic.items() if "busy" in row}
    if busy:
        texts.append(busy_table(busy))
    if not texts:
        return "Not measured on a GPU yet."
    parts = [get(results, "machine", "name") or "an unknown GPU"]
    date = get(results, "dates", "benchmark" + chapter) or get(results, "machine", "date")
    parts[0] += ", " + date if date else ""
    if cells and peers_text(benchmark):
        parts.append(peers_text(benchmark))
    texts.append("\n".join(textwrap.wrap(
        "%s. All of it, with memory and conformance, is in [docs/results](%s)."
        % ("; ".join(parts), link), 100, break_long_words=False, break_on_hyphens=False)))
    return "\n\n".join(texts)


# ---- pages --------------------------------------------------------------------------------------

MARK = re.compile(r"^<!-- (snippet|gpu|measured|ladder|terminal)(?:: ([^>]*?))? -->[ \t]*\n(.*?)^<!-- /\1 -->[ \t]*$",
                  re.MULTILINE | re.DOTALL)
OPENING = re.compile(r"^<!-- (snippet|gpu|measured|ladder|terminal)\b", re.MULTILINE)


def woven(page, text, tour):
    """The page's text with every mark filled."""
    def fill(hit):
        kind, argument, old = hit.group(1), (hit.group(2) or "").strip(), hit.group(3)
        if OPENING.search(old):
            raise Stale("the mark `%s %s` is not closed" % (kind, argument))
        if kind == "snippet":
            new = code_block(page, argument)
        elif kind == "gpu":
            path, results = gpu_results()
            make = {"ladder": gpu_ladder, "speed": gpu_speed}.get(argument, on_gpu)
            also = (argument,) if make is on_gpu else ()
            new = "\n%s\n" % make(results, os.path.relpath(path, page.parent), *also)
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
        except (OSError, ValueError, Stale) as error:
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
