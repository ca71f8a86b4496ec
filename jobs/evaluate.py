"""`python jobs/evaluate.py CONFIG [dotted.key=value ...]`, also under `ray job submit`."""

import sys

from muki_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
