"""Print lines per file and per function, largest first, and fail above the budget.

    python tools/size.py [folder]        the folder is src/isobit where none is given

A function counts from its `def` to its last line, docstring included. Exit code 1 names each file above 400 lines
and each function above 60.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How many lines a file or a function has; `where` is `path` or `path:line name`."""

    where: str
    lines: int


def file_sizes(folder: Path) -> list[Size]:
    """Every Python file under the folder, largest first."""
    sizes = (Size(where=str(p.relative_to(folder)), lines=len(p.read_text().splitlines())) for p in _files(folder))
    return _sorted(sizes)


def function_sizes(folder: Path) -> list[Size]:
    """Every function and method under the folder, inner ones too, largest first."""
    found = []
    for path in _files(folder):
        for name, node in _functions(ast.parse(path.read_text(), filename=str(path)), ()):
            where = f"{path.relative_to(folder)}:{node.lineno} {name}"
            found.append(Size(where=where, lines=(node.end_lineno or node.lineno) - node.lineno + 1))
    return _sorted(found)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _functions(node: ast.AST, outer: tuple[str, ...]) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        names = outer
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = (*outer, child.name)
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ".".join(names), child
        yield from _functions(child, names)


def _sorted(sizes: Iterator[Size] | list[Size]) -> list[Size]:
    return sorted(sizes, key=lambda size: (-size.lines, size.where))


def main(arguments: list[str]) -> int:
    """Print both lists; 1 where something is above its budget, 2 where there is nothing to measure."""
    folder = Path(arguments[0]) if arguments else Path(__file__).parent.parent / "src" / "isobit"
    files, functions = file_sizes(folder), function_sizes(folder)
    if not files:
        print(f"no Python files under {folder}", file=sys.stderr)
        return 2
    for title, sizes in (("file", files), ("function", functions)):
        print(f"lines per {title}: {len(sizes)} of them, {sum(size.lines for size in sizes)} lines")
        for size in sizes:
            print(f"{size.lines:6}  {size.where}")
    over = [(size, FILE_LINES) for size in files if size.lines > FILE_LINES]
    over += [(size, FUNCTION_LINES) for size in functions if size.lines > FUNCTION_LINES]
    for size, limit in over:
        print(f"too long: {size.where} has {size.lines} lines, the limit is {limit}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
