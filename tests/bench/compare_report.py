"""What compare_cpu.py tells of its measurements: a line a cell, the table, the plot."""

import math
import statistics

LOSS = 1.05  # less than so many times as fast as the best peer is listed as not won


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(value) for value in values))


def line(cell):
    words = ["%d thread%s" % (cell["threads"], "s" if cell["threads"] > 1 else ""), cell["problem"]]
    for name, row in cell["kernels"].items():
        text = "%s %.3g ms" % (name, row["seconds"] * 1e3)
        text += " %.0f%%" % (100 * (row["fraction_of_bound"] if cell["kind"] == "decode"
                                    else row["fraction_of_peak"]))
        if "best_peer" in row:
            text += " (%.2fx)" % row["times_as_fast_as_best_peer"]
        words.append(text)
    if cell["disturbed_rounds"] > 0.1:
        words.append("(%.0f %% of rounds disturbed)" % (cell["disturbed_rounds"] * 100))
    return "  ".join(words)


def ours(cells, layout, chosen):
    """(cell, row) of the library's kernel with that layout, in the cells that are chosen."""
    found = []
    for cell in cells:
        for name, row in cell["kernels"].items():
            if name.startswith("tilewise " + layout) and chosen(cell):
                found.append((cell, row))
    return found


def is_prefill(cell, causal):
    return cell["kind"] == "prefill" and cell["seqlen_q"] > 128 and cell["causal"] == causal


ROWS = [
    ("full, contiguous heads", "bhsd", lambda cell: is_prefill(cell, False)),
    ("full, bshd", "bshd", lambda cell: is_prefill(cell, False)),
    ("causal, contiguous heads", "bhsd", lambda cell: is_prefill(cell, True)),
    ("causal, bshd", "bshd", lambda cell: is_prefill(cell, True)),
    ("N = 128 full, contiguous heads", "bhsd", lambda cell: cell["kind"] == "prefill"
     and cell["seqlen_q"] == 128 and not cell["causal"]),
    ("N = 128 full, bshd", "bshd", lambda cell: cell["kind"] == "prefill"
     and cell["seqlen_q"] == 128 and not cell["causal"]),
    ("the same, 8 heads, in the caches", "bshd", lambda cell: cell["kind"] == "cached"),
    ("64 queries, 32k keys, full, bshd", "bshd", lambda cell: cell["kind"] == "long"),
    ("decode, f16, contiguous heads", "bhsd", lambda cell: cell["kind"] == "decode"),
    ("decode, f16, bshd", "bshd", lambda cell: cell["kind"] == "decode"),
]


def summary(cells):
    rows = []
    for threads in sorted({cell["threads"] for cell in cells}):
        for title, layout, chosen in ROWS:
            found = [(cell, row) for cell, row in ours(cells, layout, chosen)
                     if cell["threads"] == threads]
            if not found:
                continue
            ratios = [row["times_as_fast_as_best_peer"] for _, row in found
                      if "best_peer" in row and not row["ratio_disturbed"]]
            decode = found[0][0]["kind"] == "decode"
            part = "fraction_of_bound" if decode else "fraction_of_peak"
            parts = [row[part] for _, row in found if not row["disturbed"]]
            entry = {"row": title, "threads": threads, "cells": len(found),
                     "cells_left_out": len(found) - min(len(parts), len(ratios)),
                     "error": max(row["error"] for _, row in found)}
            if parts:
                entry[part] = geometric_mean(parts)
                entry["fraction_range"] = [min(parts), max(parts)]
            if ratios:
                entry["times_as_fast_as_best_peer"] = geometric_mean(ratios)
                entry["ratio_range"] = [min(ratios), max(ratios)]
            entry["times_as_fast_as"] = by_system(row for _, row in found)
            rows.append(entry)
    return rows


def by_system(rows):
    """Geometric means of the ratios with each system's best of the cell: torch, onnxruntime, ggml;
    by its own name what is no peer of the cell."""
    ratios = {}
    for row in rows:
        best = {}
        for name, ratio in row.get("times_as_fast_as", {}).items():
            if not ratio["disturbed"]:
                system = name.split()[0] if ratio["counted"] else name
                best[system] = min(best.get(system, math.inf), ratio["median"])
        for system, ratio in best.items():
            ratios.setdefault(system, []).append(ratio)
    return {system: geometric_mean(values) for system, values in ratios.items()}


def not_won(cells):
    """The cells where the library is not LOSS times as fast as the best peer."""
    found = []
    for cell in cells:
        for name, row in cell["kernels"].items():
            if row.get("times_as_fast_as_best_peer", LOSS) < LOSS:
                found.append("  %d  %-32s %-18s %.2fx %s%s" % (
                    cell["threads"], cell["problem"], name, row["times_as_fast_as_best_peer"],
                    row["best_peer"], "  (disturbed)" if row["ratio_disturbed"] else ""))
    return found


def decoding(cells):
    """A line for each decoding cell and for ours, the best peer and ggml in it: which time bounds
    it, and what fraction of that was reached."""
    lines = []
    for cell in cells:
        if cell["kind"] != "decode":
            continue
        rows = cell["kernels"]
        mine = [name for name in rows if name.startswith("tilewise")]
        peers = {rows[name]["best_peer"] for name in mine if "best_peer" in rows[name]}
        peers |= {name for name in rows if name.startswith("ggml")}
        for name in mine + sorted(peers):
            row = rows[name]
            lines.append(
                "%7d  %5d  %-18s  %6.3f  %5.1f %6.1f  %5.0f %6.0f  %-13s  %-20s  %.0e%s"
                % (cell["threads"], cell["seqlen_k"], name, row["seconds"] * 1e3,
                   row["kv_gbytes_a_second"], row["read_gbytes_a_second"], row["gflops"],
                   row["peak_gflops"], row["bound"],
                   "%.1f %% (%.0f to %.0f)" % tuple(
                       100 * part for part in (row["fraction_of_bound"],
                                               *row["fraction_of_bound_quartiles"])),
                   row["error"] / cell["largest_output"],
                   "  (disturbed)" if row["disturbed"] else ""))
    if not lines:
        return []
    return ["", "decoding: the fraction reached of the longer of two times, both measured beside "
            "each repetition:", "reading as many bytes as K and V have, on as many threads, and "
            "the multiply-adds at their peak", "(errors: of the largest output)",
            "%7s  %5s  %-18s  %6s  %12s  %12s  %-13s  %-20s  %s"
            % ("threads", "keys", "", "ms", "GB/s of read", "GFLOP/s peak", "bound by",
               "reached (middle)", "error")] + lines


def errors_at_32k(cells):
    for cell in cells:
        if cell["kind"] == "long":
            return ", ".join("%s %.1e" % (name, row["error"])
                             for name, row in cell["kernels"].items())
    return ""


def text(report):
    about = report["machine"]
    peers = ["torch %s" % about["torch"], "onnxruntime %s" % about["onnxruntime"]]
    if about["ggml"]:
        peers.append("llama.cpp's ggml %s" % about["ggml"])
    lines = ["%s, %s cores; %s; peak: float32 multiply-adds, %s"
             % (about["cpu"], about["cores"], about.get("kernel"), about.get("peak_of")),
             "against " + "; ".join(peers), "",
             "%-34s %7s  %-22s  %-24s  %s" % ("geometric means (range)", "threads", "of peak",
                                              "times as fast as the", "worst"),
             "%-34s %7s  %-22s  %-24s  %s" % ("", "", "(decode: of bound)",
                                              "best peer of each cell", "error")]
    for row in report["summary"]:
        part, ratio = "-", "-"
        if "fraction_range" in row:
            mean = row.get("fraction_of_peak", row.get("fraction_of_bound"))
            part = "%.1f %% (%.0f to %.0f)" % (mean * 100,
                                               *(100 * value for value in row["fraction_range"]))
        if "times_as_fast_as_best_peer" in row:
            ratio = "%.2f (%.2f to %.2f)" % (row["times_as_fast_as_best_peer"],
                                             *row["ratio_range"])
        left_out = row["cells_left_out"]
        lines.append("%-34s %7d  %-22s  %-24s  %.1e%s"
                     % (row["row"], row["threads"], part, ratio, row["error"],
                        "  (%d of %d cells disturbed)" % (left_out, row["cells"])
                        if left_out else ""))
    lines += ["", "times as fast as each system's best of each cell, geometric means"]
    for row in report["summary"]:
        ratios = ["%s %.2f" % pair for pair in row["times_as_fast_as"].items()]
        lines.append("%-34s %7d  %s" % (row["row"], row["threads"], ", ".join(ratios) or "-"))
    if any("ggml f16" in row["times_as_fast_as"] for row in report["summary"]):
        lines.append("ggml f16: K and V in float16, beside our float32: listed, and not counted as "
                     "a peer; ggml: all in float32")
    lines += decoding(report["cells"])
    if errors_at_32k(report["cells"]):
        lines += ["", "largest error in sampled rows, 32k keys: " + errors_at_32k(report["cells"])]
    disturbed = statistics.fmean(cell["disturbed_rounds"] for cell in report["cells"])
    lines += ["", "rounds in which other processes ran: %.0f %%" % (disturbed * 100)]
    lost = not_won(report["cells"])
    lines += ["", "less than %.2f times as fast as the best peer (threads, problem): %s"
              % (LOSS, "\n" + "\n".join(lost) if lost else "none")]
    refused = {(name, why) for cell in report["cells"] for name, why in cell["not_run"].items()}
    lines += ["refused: %s: %s" % pair for pair in sorted(refused)]
    for name, why in report["peers_not_measured"].items():
        lines.append("not measured: %s: %s" % (name, why))
    return "\n".join(lines)


def plot(report, path):
    """Fractions of the ceiling over N: a panel a width, mask and number of threads."""
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    cells = [cell for cell in report["cells"] if cell["kind"] == "prefill"]
    counts = sorted({cell["threads"] for cell in cells})
    columns = [(d, causal) for causal in (False, True) for d in (64, 128)]
    if not cells:
        return
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "tilewise"})
    figure, panels = plt.subplots(len(counts), len(columns), sharey=True, squeeze=False,
                                  figsize=(12, 3 * len(counts)), layout="constrained")
    styles = {"tilewise bhsd f32": ("C0", "o-"), "tilewise bshd f32": ("C0", "s--"),
              "torch f32": ("C1", "^-"), "onnxruntime mha": ("C2", "v-"),
              "onnxruntime attention": ("C2", "v:"), "ggml f32": ("C3", "x-"),
              "ggml f16": ("C3", "x:")}
    for i, threads in enumerate(counts):
        for j, (head_dim, causal) in enumerate(columns):
            panel = panels[i][j]
            for name, (colour, style) in styles.items():
                points = [(cell["seqlen_q"], row) for cell in cells
                          for kernel, row in cell["kernels"].items()
                          if kernel == name and not row["disturbed"]
                          and (cell["threads"], cell["head_dim"], cell["causal"])
                          == (threads, head_dim, causal)]
                if not points:
                    continue
                middle = [row["fraction_of_peak"] * 100 for _, row in points]
                spread = [[max(0, mid - row["fraction_quartiles"][0] * 100)
                           for mid, (_, row) in zip(middle, points)],
                          [max(0, row["fraction_quartiles"][1] * 100 - mid)
                           for mid, (_, row) in zip(middle, points)]]
                panel.errorbar([n for n, _ in points], middle, spread, fmt=style, color=colour,
                               label=name, markersize=4, linewidth=1.2, elinewidth=0.7)
            panel.set_xscale("log", base=2)
            ticks = sorted({cell["seqlen_q"] for cell in cells})
            panel.set_xticks(ticks, [str(n) for n in ticks], rotation=45)
            panel.set_title("d %d, %s, %d thread%s" % (head_dim, "causal" if causal else "full",
                                                      threads, "s" if threads > 1 else ""))
            panel.set_ylim(0, 100)
            panel.grid(alpha=0.3)
        panels[i][0].set_ylabel("% of multiply-add peak")
    for panel in panels[-1]:
        panel.set_xlabel("queries and keys")
    panels[0][0].legend(fontsize=7)
    figure.suptitle("float32 forward on %s (%s), medians and quartiles"
                    % (report["machine"]["cpu"], report["machine"]["date"]))
    figure.savefig(path, metadata={"Date": None})
