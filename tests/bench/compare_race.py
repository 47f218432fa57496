"""Timing kernels in turns for compare_cpu.py, each call beside what the machine can do then:
float32 multiply-adds on registers, and for decoding, reading as many bytes as K and V have."""

import math
import pathlib
import statistics
import time
import typing

DISTURBED = 0.01  # share of a round's time that threads waited for a processor


class Round(typing.NamedTuple):
    share: float    # of the time, that was waited for a processor
    seconds: float  # a call
    peak: float     # GFLOP/s of multiply-adds around it
    read: float     # GB/s of reading around it; 0 where that is not measured


def settle():
    """Until this process computes nothing: idle threads of thread pools spin for a while."""
    for _ in range(20):
        before = time.process_time()
        time.sleep(0.004)
        if time.process_time() - before < 0.0004:
            return


def waited():
    """Seconds that this process's threads were ready and had no processor: others were running."""
    total = 0
    for task in pathlib.Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError):
            pass
    return total * 1e-9


class Track:
    """One cell's kernels, and the memory that is read for the ceiling of reading."""

    def __init__(self, library, cell, threads, kernels):
        self.library, self.cell, self.threads = library, cell, threads
        self.memory = None
        if cell.kind == "decode":
            from compare_kernels import aligned
            self.memory = aligned((max(cell.kv_bytes(kernel.name) for kernel in kernels),), "u1")
            self.memory[...] = 1  # pages of its own, not one of zeros for all

    def ceilings(self, kernel):
        """(multiply-adds, reading)"""
        peak = self.library.peak_gflops(self.threads, kernel.implementation)
        if self.memory is None:
            return peak, 0.0
        return peak, self.library.read_gbytes(self.threads, self.memory,
                                              self.cell.kv_bytes(kernel.name))

    def once(self, kernel, calls):
        settle()
        before = self.ceilings(kernel)
        if self.memory is not None:  # K and V go where they stay from call to call
            kernel.call()
        waiting = waited()
        start = time.perf_counter()
        for _ in range(calls):
            kernel.call()
        spent = time.perf_counter() - start
        waiting = waited() - waiting
        after = self.ceilings(kernel)
        peak, read = ((first + second) / 2 for first, second in zip(before, after))
        return Round(waiting / (spent * self.threads), spent / calls, peak, read)

    def undisturbed(self, kernel, calls, tries=8):
        """The first of a few rounds that is not disturbed, or the least disturbed."""
        best = None
        for _ in range(tries):
            found = self.once(kernel, calls)
            best = found if best is None or found.share < best.share else best
            if best.share < DISTURBED:
                break
        return best


def race(library, cell, threads, kernels, pairs, at_least):
    """Each kernel's rounds, by its name."""
    calls = []
    for kernel in kernels:  # warm up: pages, pools, packed copies
        kernel.call()
        start = time.perf_counter()
        kernel.call()
        calls.append(max(1, math.ceil(at_least / max(time.perf_counter() - start, 1e-6))))
    track = Track(library, cell, threads, kernels)
    rounds = {kernel.name: [] for kernel in kernels}
    for _ in range(pairs):
        for kernel, n in zip(kernels, calls):
            rounds[kernel.name].append(track.undisturbed(kernel, n))
    return rounds


# ---- what the rounds say ------------------------------------------------------------------------

def quartiles(values):
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def quiet(*runners):
    """The numbers of the rounds in which none was disturbed; where that leaves fewer than three,
    all of them and True: they are not to be believed."""
    worst = [max(round_.share for round_ in together) for together in zip(*runners)]
    kept = [n for n, share in enumerate(worst) if share <= DISTURBED]
    return (kept, False) if len(kept) >= 3 else (list(range(len(worst))), True)


def row_of(cell, kernel, rounds):
    """What one kernel's rounds come to."""
    numbers, disturbed = quiet(rounds)
    kept = [rounds[n] for n in numbers]
    times = quartiles([round_.seconds for round_ in kept])
    parts = quartiles([cell.flops() / round_.seconds * 1e-9 / round_.peak for round_ in kept])
    row = {"seconds": times[1], "seconds_quartiles": [times[0], times[2]],
           "gflops": cell.flops() / times[1] * 1e-9,
           "fraction_of_peak": parts[1], "fraction_quartiles": [parts[0], parts[2]],
           "rounds": len(kept), "disturbed": disturbed}
    if kernel.implementation:
        row["implementation"] = kernel.implementation
    if cell.kind == "decode":
        row.update(bound_of(cell, kernel, kept, times[1]))
    return row


def bound_of(cell, kernel, rounds, seconds):
    """Decoding takes as long as reading K and V, or as its multiply-adds, whichever is longer: what
    fraction of that was reached, round by round."""
    bytes_ = cell.kv_bytes(kernel.name)
    reading = [bytes_ / round_.read * 1e-9 for round_ in rounds]
    adding = [cell.flops() / round_.peak * 1e-9 for round_ in rounds]
    parts = quartiles([max(pair) / round_.seconds
                       for *pair, round_ in zip(reading, adding, rounds)])
    return {"kv_bytes": bytes_, "kv_gbytes_a_second": bytes_ / seconds * 1e-9,
            "read_gbytes_a_second": statistics.median(round_.read for round_ in rounds),
            "peak_gflops": statistics.median(round_.peak for round_ in rounds),
            "bound": ("reading" if statistics.median(reading) >= statistics.median(adding)
                      else "multiply-adds"),
            "fraction_of_bound": parts[1], "fraction_of_bound_quartiles": [parts[0], parts[2]]}


def counted(kind, peer):
    """Whether a peer is one to be measured against: float32 problems are not for those that round
    K and V to float16 first."""
    return kind == "decode" or not peer.endswith(" f16")


def compare(result, rounds):
    """Each of ours with each peer: how many times as fast, round by round."""
    peers = [name for name in rounds if not name.startswith("tilewise")]
    for ours in (name for name in rounds if name.startswith("tilewise")):
        ratios = {}
        for peer in peers:
            kept, disturbed = quiet(rounds[ours], rounds[peer])
            parts = quartiles([rounds[peer][n].seconds / rounds[ours][n].seconds for n in kept])
            ratios[peer] = {"median": parts[1], "quartiles": [parts[0], parts[2]],
                            "disturbed": disturbed, "counted": counted(result["kind"], peer)}
        row = result["kernels"][ours]
        row["times_as_fast_as"] = ratios
        rivals = {name: ratio for name, ratio in ratios.items() if ratio["counted"]}
        if rivals:
            row["best_peer"] = min(rivals, key=lambda name: rivals[name]["median"])
            row["times_as_fast_as_best_peer"] = rivals[row["best_peer"]]["median"]
            near = 2 * row["times_as_fast_as_best_peer"]  # slower peers do not matter
            row["ratio_disturbed"] = any(ratio["disturbed"] for ratio in rivals.values()
                                         if ratio["median"] < near)
