#!/usr/bin/env python3
"""The phases of run.sh as one JSON: docs/results/gpu-NAME.json. What a phase has not measured anew
stays as it is there.

    python3 tests/gpu/collect.py build/gpu-results docs/results
"""

import csv
import datetime
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

CHAPTERS = ("3", "4", "5")


def read(path):
    return json.loads(path.read_text()) if path.exists() else None


def machine():
    query = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    try:
        line = subprocess.run(["nvidia-smi", "--query-gpu=" + query, "--format=csv,noheader"],
                              capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return {}
    facts = dict(zip(query.split(","), (part.strip() for part in line.split(","))))
    nvcc = shutil.which("nvcc")
    if nvcc:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        facts["nvcc"] = (re.findall(r"release ([^\n]*)", said) or [""])[0]
    facts["date"] = datetime.date.today().isoformat()
    facts["load"] = os.getloadavg()[0]
    return facts


def dates(folder):
    """When each phase was done."""
    return {path.stem: datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
            for path in sorted(folder.glob("*.done"))}


def conformance(report):
    """How many passed, by implementation; everything about those that did not."""
    rows = {}
    for verdict in report["verdicts"]:
        row = rows.setdefault(verdict["implementation"], {"pass": 0, "unsupported": 0, "other": []})
        if verdict["state"] in ("pass", "unsupported"):
            row[verdict["state"]] += 1
        else:
            row["other"].append(verdict)
    return rows


def sanitizer(folder, chapter):
    result = {}
    for tool in ("memcheck", "racecheck"):
        log = folder / ("%s%s.log" % (tool, chapter))
        if log.exists():
            lines = [line for line in log.read_text().splitlines() if "SUMMARY" in line]
            result[tool] = lines[-1].strip("= ") if lines else "no summary"
    return result


def metrics(text):
    """ncu's csv: sums over the kernels of a call; of percentages, the largest of them. Then the
    kernels' names. What it could not measure, "n/a", is absent."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return None, lines[-3:]
    sums, kernels = {}, set()
    for row in csv.DictReader(lines[start:]):
        if not row.get("Metric Value"):
            continue
        name_of_it = re.sub(r"<?unnamed>::|void ", "", row["Kernel Name"])
        kernels.add(re.split(r"[<(]", name_of_it)[0])
        try:
            value = float(row["Metric Value"].replace(",", ""))
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        name = row["Metric Name"]
        sums[name] = max(sums.get(name, 0), value) if "pct" in name else sums.get(name, 0) + value
    return sums, sorted(kernels)


def counters(text):
    sums, kernels = metrics(text)
    if sums is None:
        return {"unread": kernels}
    sector = 32
    return {"kernels": kernels,
            "hbm_bytes_read": sums.get("dram__bytes_read.sum"),
            "hbm_bytes_written": sums.get("dram__bytes_write.sum"),
            "l2_bytes_read": sector * sums.get("lts__t_sectors_srcunit_tex_op_read.sum", 0),
            "l2_bytes_written": sector * sums.get("lts__t_sectors_srcunit_tex_op_write.sum", 0),
            "bank_conflicts": sums.get("l1tex__data_bank_conflicts_pipe_lsu.sum"),
            "sm_percent": sums.get("sm__throughput.avg.pct_of_peak_sustained_elapsed"),
            "hbm_percent": sums.get("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed")}


def busy(problem, text):
    """What of the chip a call that fills it keeps busy, and its way through shared memory."""
    sums, kernels = metrics(text)
    if sums is None:
        return {"problem": problem, "unread": kernels}
    return {"problem": problem,
            "kernels": kernels,
            "sm_percent": sums.get("sm__throughput.avg.pct_of_peak_sustained_elapsed"),
            "hbm_percent": sums.get("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed"),
            "tensor_percent": sums.get(
                "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"),
            "tensor_instructions": sums.get("sm__inst_executed_pipe_tensor.sum"),
            "shared_passes": sums.get("memory_l1_wavefronts_shared"),
            "shared_least_passes": sums.get("memory_l1_wavefronts_shared_ideal"),
            "ldmatrix_conflicts": sums.get(
                "sm__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_ldsm.sum")}


def traffic(folder):
    steps = {}
    for chapter in CHAPTERS:
        for entry in read(folder / ("emulated%s.json" % chapter)) or []:
            if entry["state"] != "pass":
                continue
            counted = entry["report"]["counts"]["traffic"].values()
            steps[entry["implementation"].split(".")[1]] = {
                "problem": entry["problem"],
                "formula_bytes": entry["formula_bytes"],
                "emulator_bytes_read": 32 * sum(part["sectors_loaded"] for part in counted),
                "emulator_bytes_written": 32 * sum(part["sectors_stored"] for part in counted),
                "emulator_bank_conflict": entry["report"]["counts"]["shared"]}
    for path in sorted(folder.glob("ncu-*.csv")):
        step = path.stem.split(".", 1)[1]
        steps.setdefault(step, {}).update(counters(path.read_text()))
    for path in sorted(folder.glob("busy-*.csv")):
        step = path.stem.split(".", 1)[1]
        problem, _, text = path.read_text().partition("\n")
        steps.setdefault(step, {})["busy"] = busy(problem, text)
    return steps


def merged_rows(old, new):
    """The old rows that nobody measured again, and the new ones behind them."""
    again = {(row.get("implementation"), row["problem"]) for row in new}
    return [row for row in old
            if (row.get("implementation"), row["problem"]) not in again] + new


def benchmark(folder, old):
    rows = [row for chapter in CHAPTERS
            for row in read(folder / ("benchmark%s.json" % chapter)) or [] if "seconds" in row]
    result = {"rows": merged_rows(old.get("rows") or [], rows)}
    for name in ("naive", "flash"):
        new, before = read(folder / (name + ".json")) or {}, old.get(name) or {}
        result[name] = (before if before.get("rows") and not new.get("rows") else new) or None
    return result


def collected(folder, facts, old):
    """The record of this folder's phases, over an older one of the same machine."""
    result = {"machine": facts, "dates": {**(old.get("dates") or {}), **dates(folder)}}
    result["conformance"] = dict(old.get("conformance") or {})
    for chapter in CHAPTERS:
        report = read(folder / ("conformance%s.json" % chapter))
        result["conformance"].update(conformance(report) if report else {})
    result["bits"] = read(folder / "bits.json") or old.get("bits")
    said = old.get("sanitizer") or {}
    said = {"3": said} if "memcheck" in said else said  # files from before there was a chapter 4
    result["sanitizer"] = {chapter: sanitizer(folder, chapter) or said.get(chapter)
                           for chapter in CHAPTERS}
    result["memory"] = read(folder / "memory.json") or old.get("memory")
    result["traffic"] = {**(old.get("traffic") or {}), **traffic(folder)}
    result["benchmark"] = benchmark(folder, old.get("benchmark") or {})
    return result


def main():
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    facts = machine()
    name = re.sub(r"[^a-z0-9]+", "-", facts.get("name", "unknown").lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    for speed in sorted(folder.glob("speed*.json")):  # tests/gpu/speed.py's own records
        shutil.copy(speed, out / ("speed-%s-%s.json" % (name, speed.stem[len("speed"):])))
    path = out / ("gpu-%s.json" % name)
    path.write_text(json.dumps(collected(folder, facts, read(path) or {}), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
