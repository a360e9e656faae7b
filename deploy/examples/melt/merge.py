"""Reads the logs of all melts and writes melt.csv and melt.svg: temperature against energy.

    python3 merge.py --list logs.txt --expect 24

A run conserves its energy, and shares it out between motion and bonds: its temperature falls to about half of what it
was given, and to less where the crystal melts. The table has a row for each run: what it was given, its last line as
LAMMPS printed it, digit by digit, and the temperature's mean over the second half of the run.
Fails when a log is missing, unfinished, or there twice. Needs nothing but Python's own library.
"""

import argparse
import re
import sys

MARK = re.compile(r"^melt T (\S+) seed (\S+)$", re.M)
COLUMNS = ["Step", "Temp", "PotEng", "TotEng", "Press"]


def read_log(path):
    """One run: its values as printed. Exits where the log is not of a finished run."""
    with open(path) as file:
        text = file.read()
    mark = MARK.search(text)
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.split() == COLUMNS]
    ends = [i for i, line in enumerate(lines) if line.startswith("Loop time of")]
    if not mark or not heads or not ends:
        sys.exit(f"{path}: not the log of a finished run")
    rows = [line.split() for line in lines[heads[-1] + 1 : ends[-1]]]
    later = [float(row[1]) for row in rows[len(rows) // 2 :]]
    return {"T": mark[1], "seed": mark[2], "last": rows[-1], "mean": sum(later) / len(later)}


def draw(runs):
    """SVG: each run as a point, temperature upwards over its energy per atom, initial temperature by colour."""
    width, height, left, right, top, bottom = 760, 520, 80, 730, 70, 450
    energies = [float(run["last"][3]) for run in runs]
    temperatures = [run["mean"] for run in runs]
    first, last = min(energies), max(energies)
    highest = max(temperatures) * 1.08

    def x(energy):
        return left + (energy - first + 0.2) / (last - first + 0.4) * (right - left)

    def y(temperature):
        return bottom - temperature / highest * (bottom - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        " font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"14\" fill=\"#1f2933\">",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="32" font-size="20" font-weight="bold">A Lennard-Jones crystal, heated until it melts</text>',
        f'<text x="{left}" y="54" fill="#7b8794">{len(runs)} LAMMPS runs, one thread each, drawn in by pilots</text>',
    ]
    for step in range(int(highest / 0.2) + 1):
        at = step * 0.2
        parts.append(f'<line x1="{left}" y1="{y(at):.1f}" x2="{right}" y2="{y(at):.1f}" stroke="#e4e7eb"/>')
        parts.append(f'<text x="{left - 10}" y="{y(at) + 5:.1f}" text-anchor="end">{at:.1f}</text>')
    for whole in range(int(first) - 1, int(last) + 2):
        if left <= x(whole) <= right:
            parts.append(f'<line x1="{x(whole):.1f}" y1="{top}" x2="{x(whole):.1f}" y2="{bottom}" stroke="#e4e7eb"/>')
            parts.append(f'<text x="{x(whole):.1f}" y="{bottom + 20}" text-anchor="middle">{whole}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 44}" text-anchor="middle">energy of an atom (units of the potential)</text>')
    parts.append(f'<text transform="translate(24 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">temperature</text>')
    coldest, hottest = (end(float(run["T"]) for run in runs) for end in (min, max))
    for run, energy, temperature in zip(runs, energies, temperatures):
        warmth = (float(run["T"]) - coldest) / ((hottest - coldest) or 1)
        colour = f"rgb({int(29 + warmth * 165)},{int(78 - warmth * 13)},{int(216 - warmth * 204)})"
        parts.append(
            f'<circle cx="{x(energy):.1f}" cy="{y(temperature):.1f}" r="5" fill="{colour}" fill-opacity="0.8">'
            f'<title>T {run["T"]}, seed {run["seed"]}: {temperature:.4f} at {energy:.4f}</title></circle>'
        )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", required=True, help="a file that names one log a line")
    parser.add_argument("--expect", type=int, help="how many runs there must be")
    options = parser.parse_args()
    with open(options.list) as file:
        runs = [read_log(line.strip()) for line in file if line.strip()]
    runs.sort(key=lambda run: (float(run["T"]), int(run["seed"])))
    if len({(run["T"], run["seed"]) for run in runs}) != len(runs):
        sys.exit("a run is there twice")
    if options.expect is not None and len(runs) != options.expect:
        sys.exit(f"{len(runs)} runs, {options.expect} were expected")
    with open("melt.csv", "w") as table:
        table.write("given_T,seed,steps,temperature,potential_energy,total_energy,pressure,mean_temperature\n")
        for run in runs:
            table.write(",".join([run["T"], run["seed"], *run["last"], f"{run['mean']:.6f}"]) + "\n")
    with open("melt.svg", "w") as picture:
        picture.write(draw(runs))
    print(f"{len(runs)} runs")


if __name__ == "__main__":
    main()
