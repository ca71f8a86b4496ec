"""`python jobs/plan.py CONFIG [dotted.key=value ...]`."""

import sys

from muki_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
