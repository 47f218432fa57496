#!/usr/bin/env python3
"""Who does what when, drawn: a timeline of tests/gpu/timeline.cu as SVG.

    python3 tools/draw_timeline.py docs/results/timeline-NAME.json [--out FILE.svg]
    ... --block 0             which block, where there are several; otherwise the first
    ... --rows warps          every warp a row; otherwise a warpgroup of four, by its first warp
    ... --from 0 --to 9000    this part of it, in clocks

Time goes from left to right, a row is a warp or a warpgroup, a colour is a name of the marks; the
number in a span is its tile; a point in time is a diamond. What overlaps in a row (a wgmma under
way, and softmax meanwhile) has lines of its own. One file without scripts or fonts, light or dark
as the page is read; for who cannot see it, its description says the same in words. Python's
standard library only.
"""

import argparse
import html
import json
import pathlib
import sys

WIDTH, LEFT, LINE, GAP, TOP = 1000, 104, 20, 10, 30
# Light and dark: told apart without colours, too, by their lightness.
COLOURS = (("#3b7dd8", "#5b9bf0"), ("#e08a1e", "#f2a33c"), ("#2f9e6e", "#45bd88"),
           ("#b04fc0", "#cf74de"), ("#c94f4f", "#e57373"), ("#6b7280", "#9aa3b2"),
           ("#8a6d1f", "#c9a53f"), ("#1f8a99", "#43b5c4"))


def rows_of(events, by_warpgroup):
    """Events by row, in order: of a warpgroup those of its first warp that has any."""
    warps = {}
    for event in sorted(events, key=lambda event: (event["begin"], event["end"])):
        warps.setdefault(event["warp"], []).append(event)
    if not by_warpgroup:
        return {f"warp {warp}": warps[warp] for warp in sorted(warps)}
    rows = {}
    for warp in sorted(warps):
        rows.setdefault(f"warpgroup {warp // 4}", warps[warp])
    return rows


def lines_of(events):
    """Which line of its row a name has: as few as let nothing on one line overlap."""
    lines = []
    for name in dict.fromkeys(event["name"] for event in events):
        own = [event for event in events if event["name"] == name]
        for line in lines:
            if not overlap([*line["events"], *own]):
                break
        else:
            line = {"names": [], "events": []}
            lines.append(line)
        line["names"].append(name)
        line["events"] += own
    return {name: number for number, line in enumerate(lines) for name in line["names"]}


def overlap(events):
    spans = sorted((event["begin"], event["end"]) for event in events)
    return any(later[0] < earlier[1] for earlier, later in zip(spans, spans[1:]))


def step_of(length):
    """The smallest of 1, 2, 5, 10, 20, ... of which at most eight are in this length."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if length <= 8 * step * factor:
                return step * factor
        step *= 10


def described(timeline, rows):
    """The picture in words."""
    sentences = [f"{len(rows)} rows: {', '.join(rows)}."]
    for row, events in rows.items():
        length = max(event["end"] for event in events) - events[0]["begin"]
        parts = []
        for name in dict.fromkeys(event["name"] for event in events):
            own = [event for event in events if event["name"] == name]
            busy = sum(event["end"] - event["begin"] for event in own)
            parts.append(f"{name} {len(own)} times, {busy // len(own)} clocks each on average, "
                         f"{100 * busy / max(1, length):.0f} % of the row's time")
        sentences.append(f"{row}, from {events[0]['begin']} to "
                         f"{max(event['end'] for event in events)}: {'; '.join(parts)}.")
    return " ".join(sentences)


def style(names):
    light = "".join(f".n{n}{{fill:{COLOURS[n % len(COLOURS)][0]}}}" for n in range(len(names)))
    dark = "".join(f".n{n}{{fill:{COLOURS[n % len(COLOURS)][1]}}}" for n in range(len(names)))
    return ("<style>.page{fill:#fff}text{font:12px sans-serif;fill:#1f2328}"
            ".axis{stroke:#8c959f;stroke-opacity:.5}"
            ".point{stroke:#fff}"
            f".in{{font-size:10px;fill:#fff;text-anchor:middle}}{light}"
            "@media(prefers-color-scheme:dark){.page,.in{fill:#0d1117}text:not(.in){fill:#e6edf3}"
            f"{dark}}}</style>")


def draw(timeline, block=None, by_warpgroup=True, begin=None, end=None):
    """The SVG's text."""
    if not timeline["events"]:
        raise SystemExit("the timeline has no events")
    if block is None:
        block = timeline["events"][0]["block"]
    events = [event for event in timeline["events"] if event["block"] == block]
    if not events:
        raise SystemExit(f"the timeline has no block {block}")
    begin = min(event["begin"] for event in events) if begin is None else begin
    end = max(event["end"] for event in events) if end is None else end
    events = [{**event, "begin": max(event["begin"], begin), "end": min(event["end"], end)}
              for event in events if event["end"] >= begin and event["begin"] <= end]
    if not events or end <= begin:
        raise SystemExit(f"nothing happens from {begin} to {end}")
    rows = rows_of(events, by_warpgroup)
    names = list(dict.fromkeys(event["name"] for event in
                               sorted(events, key=lambda event: event["begin"])))
    scale = (WIDTH - LEFT) / (end - begin)

    def x(clock):
        return LEFT + (clock - begin) * scale

    parts, points, y = [], [], TOP
    for row, of_row in rows.items():
        lines = lines_of(of_row)
        parts.append(f'<text x="0" y="{y + 14}">{html.escape(row)}</text>')
        for event in of_row:
            where = points if event["begin"] == event["end"] else parts
            where.append(drawn(event, names, x, y + LINE * lines[event["name"]]))
        y += LINE * (max(lines.values()) + 1) + GAP
    parts.insert(0, axis(timeline, begin, end, x, y))
    parts += points  # above what is under way meanwhile
    parts.append(legend(names, y + 56))
    title = f"{timeline['step']}, {timeline['problem']}, block {block}"
    where = f"{timeline['device']}, one block; clocks of its multiprocessor"
    height = y + 56 + 18 * ((len(names) + 3) // 4)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 10} {height}" '
            f'role="img" aria-labelledby="title what">\n<title id="title">{html.escape(title)}'
            f'</title>\n<desc id="what">{html.escape(described(timeline, rows))}</desc>\n'
            f'{style(names)}\n<rect class="page" width="100%" height="100%"/>\n'
            f'<text x="0" y="14">{html.escape(title)} ({html.escape(where)})</text>\n'
            + "\n".join(parts) + "\n</svg>\n")


def drawn(event, names, x, y):
    number, left = names.index(event["name"]), x(event["begin"])
    width = max(1.0, x(event["end"]) - left)
    if event["begin"] == event["end"]:
        what = f"{event['name']} {event['tile']}: {event['begin']}"
        return (f'<g><title>{html.escape(what)}</title><path class="n{number} point" '
                f'd="M{left:.1f} {y - 3}l4 {LINE / 2}l-4 {LINE / 2}l-4 -{LINE / 2}z"/></g>')
    what = f"{event['name']} {event['tile']}: {event['begin']} to {event['end']}"
    label = f'<text class="in" x="{left + width / 2:.1f}" y="{y + 12}">{event["tile"]}</text>' \
        if width > 8 * len(str(event["tile"])) else ""
    return (f'<g><title>{html.escape(what)}</title><rect class="n{number}" x="{left:.1f}" '
            f'y="{y}" width="{width:.1f}" height="{LINE - 3}" rx="1"/>{label}</g>')


def axis(timeline, begin, end, x, y):
    step = step_of(end - begin)
    parts = [f'<line class="axis" x1="{LEFT}" y1="{y}" x2="{WIDTH}" y2="{y}"/>']
    clock = -(-begin // step) * step
    while clock <= end:
        nanoseconds = clock / timeline["clocks_a_nanosecond"]
        parts.append(f'<line class="axis" x1="{x(clock):.1f}" y1="{TOP}" x2="{x(clock):.1f}" '
                     f'y2="{y + 4}"/>')
        for line, text in enumerate((clock, f"{nanoseconds / 1000:.2f} µs")):
            parts.append(f'<text x="{x(clock):.1f}" y="{y + 17 + 14 * line}" '
                         f'text-anchor="middle">{text}</text>')
        clock += step
    return "\n".join(parts)


def legend(names, y):
    parts = []
    for n, name in enumerate(names):
        left, line = LEFT + 230 * (n % 4), y + 18 * (n // 4)
        parts.append(f'<rect class="n{n}" x="{left}" y="{line - 10}" width="12" height="12"/>'
                     f'<text x="{left + 18}" y="{line}">{html.escape(name)}</text>')
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("timeline", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--block", type=int)
    parser.add_argument("--rows", choices=("warps", "warpgroups"), default="warpgroups")
    parser.add_argument("--from", dest="begin", type=int)
    parser.add_argument("--to", dest="end", type=int)
    arguments = parser.parse_args()
    timeline = json.loads(arguments.timeline.read_text(encoding="utf-8"))
    text = draw(timeline, arguments.block, arguments.rows == "warpgroups", arguments.begin,
                arguments.end)
    out = arguments.out or arguments.timeline.with_suffix(".svg")
    out.write_text(text, encoding="utf-8")
    print(out)


if __name__ == "__main__":
    sys.exit(main())
