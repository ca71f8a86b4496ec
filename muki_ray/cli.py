"""Command line: parse, one library call, print. `jobs/*.py` and the console script are this code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from muki_ray.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0, or 2 for an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="muki-ray", description="Merge fine-tuned text classifiers into one, without labels."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("integrate", "teachers and unlabeled text in, one student out"),
                       ("plan", "what integrate would do here: who scores what where, what is stored, what the rest takes"),
                       ("evaluate", "measure a finished run's student on its labelled test set again")):  # fmt: skip
        command = verbs.add_parser(verb, help=text, description=text)
        command.add_argument("config", help="YAML file")
        command.add_argument(
            "overrides", nargs="*", metavar="dotted.key=value", help="settings that replace those of the file"
        )
    options = parser.parse_args(arguments)
    try:
        from muki_ray.config import load_config

        config = load_config(options.config, options.overrides)
        from muki_ray import workflow

        summary = getattr(workflow, options.verb)(config).summary
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(summary)
    return 0
