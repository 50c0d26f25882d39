"""The command line. One file per command: it parses, calls, prints; what a command needs is imported when it runs."""

import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main() -> None:
    """Run the command line: the entry point `isobit`."""
    try:
        from isobit.cli.app import app  # here, because Ctrl-C may come while it is imported
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without × or → shows ? there
    app(prog_name="isobit")
