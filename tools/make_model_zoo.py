#!/usr/bin/env python
"""Write MODEL_ZOO.md: what each config costs, what the paper reports. ``--help`` lists the options."""

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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("MODEL_ZOO.md"))
    parser.add_argument("--rows", type=Path, default=Path("output/model_zoo.csv"), help="kept between calls")
    parser.add_argument("--no-times", action="store_true", help="parameters and multiply-adds alone")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each config's times, about")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = measure_zoo(zoo_configs(), args.rows, args.budget, args.threads, not args.no_times)
    args.output.write_text(markdown(rows, shlex.join(["python", "tools/make_model_zoo.py", *sys.argv[1:]])))
    print(f"wrote {args.output}: {len(rows)} configs")


if __name__ == "__main__":
    main()
