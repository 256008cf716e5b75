#!/usr/bin/env python
"""Write MODEL_ZOO.md: what each config costs, what the paper reports. ``--help`` lists the options.

What was measured is kept in a CSV file, row by row: call it again to go on, ``--seconds 600`` at a time where the
machine is quiet for as long.
"""

import argparse
import shlex
import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from mrcnn_ext.benchmark.zoo import markdown, measure_zoo, zoo_configs
from mrcnn_ext.files import replacing


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("MODEL_ZOO.md"))
    parser.add_argument("--rows", type=Path, default=Path("output/model_zoo.csv"), help="kept between calls")
    parser.add_argument("--no-times", action="store_true", help="parameters and GMACs alone")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="configs whose names hold one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no config after so many")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each config's times, about")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    names = [name for name in zoo_configs() if not args.only or any(word in name for word in args.only)]
    if not names:
        parser.error(f"--only: no config of the zoo holds {' or '.join(args.only)}")
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    rows, left = measure_zoo(names, args.rows, args.budget, args.threads, not args.no_times, args.seconds)
    # Without what chooses a slice: the page holds the whole zoo.
    command = ["python", "tools/make_model_zoo.py", *(["--no-times"] if args.no_times else [])]
    with replacing(args.output, "w") as file:
        file.write(markdown(rows, shlex.join(command)))
    print(f"wrote {args.output}: {len(names) - len(left)} of {len(names)} configs measured")
    if left:
        print(f"left: {', '.join(left)}")


if __name__ == "__main__":
    main()
