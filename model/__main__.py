"""Generate videos from the command line: `python -m model --checkpoint DIR --task … --prompt …`."""

import sys

from model.options import parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    options = parser().parse_args(arguments)
    # Importing torch takes seconds, for which `--help` and wrong options do not wait.
    from model.command import run  # noqa: PLC0415

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
