#!/usr/bin/env python3
"""Writes what `qpipe plan` says of configs/ for published models into their heads, from the config.json in tests/golden/published (figures of the public
models, no weights).

    published_plans.py QPIPE            writes it
    published_plans.py QPIPE --check    fails where a figure is more than 2 % away from what the program says"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
PUBLISHED = os.path.join(ROOT, "tests", "golden", "published")
TOLERANCE = 0.02
MACHINES = (
    ("1 x 24 GB", 1, "22GiB"),
    ("8 x 24 GB", 8, "22GiB"),
    ("8 x H200", 8, "130GiB"),
)
HEAD = "# qpipe plan, of config.json alone, with an H100's rates (--tflops for other cards):\n"
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def planned(qpipe, config, model, ranks, memory):
    """GPU memory of a rank and host memory of the machine in GiB, and seconds; None when it does not fit."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "plan.json")
        run = subprocess.run([qpipe, "plan", config, "--ranks", str(ranks), "--gpu-memory", memory, "--json", path, "--set", f"model.path={model}"],
                             capture_output=True, text=True)
        if run.returncode not in (0, 78) or not os.path.exists(path):
            sys.exit(f"{config}: {run.stderr}")
        with open(path) as f:
            plan = json.load(f)
    peak = plan["peak_bytes"]
    return (peak["gpu"] / 2**30, ranks * peak["host"] / 2**30, plan["seconds"]["total"]) if plan["fits"] else None


def row(machine, ranks, memory, figures):
    start = f"#   {machine:<10} --ranks {ranks} --gpu-memory {memory + ':':<8}"
    if figures is None:
        return start + " does not fit\n"
    gpu, host, seconds = figures
    unit = "s" if seconds < 90 else "min" if seconds < 5400 else "h"
    return f"{start} GPU {gpu:.1f} GiB each, host {host:.1f} GiB, {seconds / UNITS[unit]:.1f} {unit}\n"


def read_row(line):
    """(machine with its arguments, figures), or None of another line."""
    found = re.fullmatch(r"(#   .*? --ranks \d+ --gpu-memory \w+): +(?:(does not fit)|GPU ([\d.]+) GiB each, host ([\d.]+) GiB, ([\d.]+) (s|min|h))\n", line)
    if not found:
        return None
    start, unfit, gpu, host, time, unit = found.groups()
    return start, None if unfit else (float(gpu), float(host), float(time) * UNITS[unit])


def near(stored, now):
    """Within the tolerance, or as near as the last digit says: one of 1.9 GiB or 4.9 s is more than 2 %."""
    if stored is None or now is None:
        return stored is now
    return all(abs(a - b) <= max(TOLERANCE * b, 0.051 * scale) for a, b, scale in zip(stored, now, (1, 1, 1 if now[2] < 90 else 60 if now[2] < 5400 else 3600)))


def faults(config, lines, figures):
    stored = dict(filter(None, map(read_row, lines)))
    for (machine, ranks, memory), now in zip(MACHINES, figures):
        expected = row(machine, ranks, memory, now)
        start, _ = read_row(expected)
        if start not in stored:
            yield f"{config}: no line of {machine}; it is\n{expected}"
        elif not near(stored[start], now):
            yield f"{config}: {machine} is\n{expected}"


def with_rows(lines, figures):
    """The rows stand behind the comments at the top."""
    kept = [line for line in lines if line != HEAD and not read_row(line)]
    top = next(number for number, line in enumerate(kept) if not line.startswith("#"))
    return kept[:top] + [HEAD] + [row(*machine, now) for machine, now in zip(MACHINES, figures)] + kept[top:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qpipe")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    found = []
    for name in sorted(os.listdir(PUBLISHED)):
        config = os.path.join(ROOT, "configs", name.lower() + ".toml")
        figures = [planned(args.qpipe, config, os.path.join(PUBLISHED, name), ranks, memory) for _, ranks, memory in MACHINES]
        with open(config) as f:
            lines = f.readlines()
        if args.check:
            found += faults(os.path.relpath(config, ROOT), lines, figures)
        else:
            with open(config, "w") as f:
                f.writelines(with_rows(lines, figures))
    if found:
        print("".join(found) + f"stale: {sys.argv[0]} {args.qpipe} makes them anew")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
