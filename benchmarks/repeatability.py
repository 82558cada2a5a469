"""Do two profiles of one space, apart in time, agree within their intervals?

    python benchmarks/repeatability.py [SPACE] --into DIR [--apart 3600]

Profiles into DIR/first, waits until `--apart` seconds after its end, profiles into DIR/second, and compares each entry of the two tables:
how many ratios are 1 within the tables' 90 % intervals (nine of ten should be), and how far the ratios spread. What is in DIR is not
measured again, so `--stop-after-first` lets the machine be used by others meanwhile; the second call waits for what is left.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from archsearch.compare import Side, load_side
from archsearch.estimate import row_summary
from archsearch.profile import profile
from archsearch.space import Space
from devices import open_device


def measure(space: Space, folder: Path) -> float:
    """Profile into a folder unless that is done; Unix time of its end."""
    ended = folder / "ended"
    if not ended.exists():
        begun = time.monotonic()
        for event in profile(space, folder, open_device("local")):
            if event.failed:
                raise SystemExit(f"{event.label}: {event.failed}")
        ended.write_text(f"{time.time()}\n")
        print(f"{folder.name}: {time.monotonic() - begun:.0f} s")
    return float(ended.read_text())


def report(a: Side, b: Side) -> None:
    """An entry agrees where the ratio lies within both intervals, added in quadrature."""
    ratios, halves, agreeing = [], [], 0
    for key in (key for key in a.rows if key in b.rows):
        one, two = row_summary(a.rows[key]), row_summary(b.rows[key])
        ratio, half = two.value / one.value, float(np.hypot(one.relative, two.relative))
        inside = abs(np.log(ratio)) <= half
        agreeing += inside
        ratios.append(ratio)
        halves.append(half)
        label = a.rows[key].subject["label"]
        print(f"{' ' if inside else '!'} {label:<18} {key[1].label:<14} {one.value:8.4f} {two.value:8.4f} ms  {ratio:.3f} +-{half:.1%}")
    share = agreeing / len(ratios)
    print(f"{agreeing} of {len(ratios)} entries agree within their 90 % intervals ({share:.0%}); half widths {np.median(halves):.1%}")
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    worst = max(ratios, key=lambda ratio: abs(np.log(ratio)))
    print(f"second / first: median {middle:.3f}, 5th to 95th percentile {low:.3f} to {high:.3f}, worst {worst:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", nargs="?", type=Path, default=Path("examples/demo.toml"))
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--apart", type=float, default=3600.0, metavar="SECONDS")
    parser.add_argument("--stop-after-first", action="store_true")
    options = parser.parse_args()
    space = Space.read(options.space)
    ended = measure(space, options.into / "first")
    if options.stop_after_first:
        return
    if not (options.into / "second" / "ended").exists():
        left = ended + options.apart - time.time()
        if left > 0:
            print(f"waiting {left:.0f} s", flush=True)
            time.sleep(left)
    second = measure(space, options.into / "second")
    print(f"{(second - ended) / 60:.0f} minutes apart")
    report(load_side(options.into / "first"), load_side(options.into / "second"))


if __name__ == "__main__":
    main()
