"""How every command ends: its exit code, and one clear text on stderr where something was wrong."""

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from isobit.cli import INTERRUPTED
from isobit.cli.output import print_error
from isobit.core.errors import IsobitError

FAULT = 70
"""Exit code of an error that isobit did not foresee (EX_SOFTWARE of sysexits.h)."""


class Commands(TyperGroup):
    """A group whose commands never end in a bare traceback; `--debug` or ISOBIT_DEBUG=1 shows it."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> None:
        """Run a command and exit with its code: 0, that of the error (2 to 8), or 130 after Ctrl-C.

        The context's object is the command line as it was typed.
        """
        arguments = sys.argv[1:] if args is None else list(args)
        debug = "--debug" in arguments or os.environ.get("ISOBIT_DEBUG", "0") not in ("", "0")
        try:
            typed = shlex.join([prog_name or "isobit", *arguments])
            code = super().main(arguments, prog_name or "isobit", **{**extra, "obj": typed, "standalone_mode": False})
        except KeyboardInterrupt:
            code = INTERRUPTED
        except IsobitError as error:
            code = error.exit_code
            _explain(str(error), debug=debug)
        except typer.TyperException as error:
            code = error.exit_code
            context = vars(error).get("ctx")
            command = prog_name or "isobit" if context is None else context.command_path
            text = error.format_message().removesuffix(".").replace("?.", "?")
            print_error(f"{text}{'' if text.endswith('?') else '.'} See `{command} --help`")
        except Exception as error:
            code = FAULT
            text = str(error).strip() or "no further text"
            hint = "" if debug else ". Run it again with --debug to see where, and report it"
            _explain(f"isobit has a fault, {type(error).__name__}: {text}{hint}", debug=debug)
        if code == INTERRUPTED:
            print_error("interrupted; files that were not complete have been removed", label="")
        sys.exit(code if isinstance(code, int) else 0)


def _explain(text: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print_error(text)
