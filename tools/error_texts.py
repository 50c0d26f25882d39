"""Print what isobit says to every mistake that the tests of the command line know.

    python tools/error_texts.py [text]        only cases whose name or command holds the text

Each case runs in this process, in a temporary folder with good and bad files.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from cli.bad_input import CASES, invoke, write_exported
from cli.inputs import write_inputs


def main(arguments: list[str]) -> int:
    """Print every case; 1 where one does not say what its test wants."""
    wanted = arguments[0] if arguments else ""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        os.chdir(folder)
        write_exported(Path(folder))
        for case in CASES:
            if wanted not in f"{case.name} {case.command}":
                continue
            with case.under():
                result = invoke(case.command)
            fits = result.exit_code == case.code and all(text in result.stderr for text in case.says)
            wrong += not fits
            print(f"{case.name}{'' if fits else '   <-- NOT AS EXPECTED'}")
            print(f"  $ isobit {case.command}")
            print("  " + result.stderr.strip().replace("\n", "\n  ").replace(folder, "."))
            print(f"  exit code {result.exit_code}\n")
        os.chdir("/")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
