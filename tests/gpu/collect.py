#!/usr/bin/env python3
"""The phases of run.sh as one JSON: docs/results/gpu-NAME.json.

    python3 tests/gpu/collect.py build/gpu-results docs/results
"""

import csv
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys


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


def sanitizer(folder):
    result = {}
    for tool in ("memcheck", "racecheck"):
        log = folder / (tool + ".log")
        if log.exists():
            lines = [line for line in log.read_text().splitlines() if "SUMMARY" in line]
            result[tool] = lines[-1].strip("= ") if lines else "no summary"
    return result


def counters(path):
    """ncu's csv: sums over the kernels of a call; of percentages, the largest of them."""
    lines = path.read_text().splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return {"unread": lines[-3:]}
    sums, kernels = {}, set()
    for row in csv.DictReader(lines[start:]):
        value = float(row["Metric Value"].replace(",", ""))
        name = row["Metric Name"]
        name_of_it = re.sub(r"<?unnamed>::|void ", "", row["Kernel Name"])
        kernels.add(re.split(r"[<(]", name_of_it)[0])
        sums[name] = max(sums.get(name, 0), value) if "pct" in name else sums.get(name, 0) + value
    sector = 32
    return {"kernels": sorted(kernels),
            "hbm_bytes_read": sums.get("dram__bytes_read.sum"),
            "hbm_bytes_written": sums.get("dram__bytes_write.sum"),
            "l2_bytes_read": sector * sums.get("lts__t_sectors_srcunit_tex_op_read.sum", 0),
            "l2_bytes_written": sector * sums.get("lts__t_sectors_srcunit_tex_op_write.sum", 0),
            "bank_conflicts": sums.get("l1tex__data_bank_conflicts_pipe_lsu.sum"),
            "sm_percent": sums.get("sm__throughput.avg.pct_of_peak_sustained_elapsed"),
            "hbm_percent": sums.get("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed")}


def traffic(folder):
    emulated = {}
    for entry in read(folder / "emulated.json") or []:
        if entry["state"] != "pass":
            continue
        counted = entry["report"]["counts"]["traffic"].values()
        emulated[entry["implementation"].split(".")[1]] = {
            "problem": entry["problem"],
            "formula_bytes": entry["formula_bytes"],
            "emulator_bytes_read": 32 * sum(part["sectors_loaded"] for part in counted),
            "emulator_bytes_written": 32 * sum(part["sectors_stored"] for part in counted),
            "emulator_bank_conflict": entry["report"]["counts"]["shared"]}
    for path in sorted(folder.glob("ncu-stage.*.csv")):
        step = path.name[len("ncu-stage."):-len(".csv")]
        emulated.setdefault(step, {}).update(counters(path))
    return emulated


def benchmark(folder):
    rows = []
    for name in ("bench-fwd.json", "bench-bwd.json"):
        for run in (read(folder / name) or {"runs": []})["runs"]:
            if "time" in run:
                rows.append({"implementation": run["implementation"], "problem": run["problem"],
                             "seconds": run["time"]["median"], "fastest": run["time"]["fastest"],
                             "slowest": run["time"]["slowest"],
                             "gflops": run["time"]["gflops"]})
    return {"rows": rows, "naive": read(folder / "naive.json")}


def main():
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    result = {"machine": machine()}
    report = read(folder / "conformance.json")
    if report:
        result["conformance"] = conformance(report)
    result["bits"] = read(folder / "bits.json")
    result["sanitizer"] = sanitizer(folder)
    result["memory"] = read(folder / "memory.json")
    result["traffic"] = traffic(folder)
    result["benchmark"] = benchmark(folder)
    name = re.sub(r"[^a-z0-9]+", "-", result["machine"].get("name", "unknown").lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    path = out / ("gpu-%s.json" % name)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
