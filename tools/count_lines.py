"""Count code lines: what remains of a file without blank lines, comments and docstrings.

    python tools/count_lines.py                             each package of rlbook
    python tools/count_lines.py rlbook.recipes.ppo          the import closure of a module: what its reader has to hold
    python tools/count_lines.py rlbook.recipes.ppo --lazy   the same with the imports inside functions

Any installed package will do (``stable_baselines3.ppo.ppo``). The closure follows imports within that package.
``from package import Name`` leads to the module that defines ``Name``, not to all that the package's ``__init__`` imports;
imports for type checkers only are left out.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Return how many lines of ``source`` hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(source)))


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of the lines that strings standing alone take up: docstrings, and those under an attribute."""
    alone = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    strings = [node for node in alone if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]
    return {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


class Package:
    """The modules of one package on disk, read but never imported; ``lazy`` counts the imports inside functions too."""

    def __init__(self, folder: Path, lazy: bool = False):
        self.files = {
            ".".join((folder.name, *file.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): file
            for file in sorted(folder.rglob("*.py"))
        }
        self.lazy = lazy

    def lines(self, module: str) -> int:
        """Return the code lines of one module."""
        return code_lines(self.files[module].read_text())

    def imports(self, module: str) -> Iterator[str]:
        """Yield the modules of this package that ``module`` imports when it runs."""
        for node in runtime_nodes(ast.parse(self.files[module].read_text()), self.lazy):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.files)
            elif isinstance(node, ast.ImportFrom):
                source = self.absolute(node, module)
                yield from (home for alias in node.names if (home := self.home(source, alias.name)))

    def absolute(self, node: ast.ImportFrom, module: str) -> str:
        """Return the full name of the module that ``from ...x import y`` names."""
        if not node.level:
            return node.module or ""
        is_package = self.files[module].name == "__init__.py"
        parts = module.split(".")
        base = parts[: len(parts) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def home(self, source: str, name: str, seen: frozenset[str] = frozenset()) -> str | None:
        """Return the module that defines what ``from source import name`` gives, or None if that is outside this package."""
        if f"{source}.{name}" in self.files:
            return f"{source}.{name}"
        if source not in self.files or source in seen:
            return source if source in self.files else None
        if self.files[source].name == "__init__.py":
            for node in ast.walk(ast.parse(self.files[source].read_text())):
                if isinstance(node, ast.ImportFrom):
                    for alias in node.names:
                        if (alias.asname or alias.name) == name:
                            return self.home(self.absolute(node, source), alias.name, seen | {source})
        return source


def runtime_nodes(node: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """Walk a syntax tree without the blocks that only type checkers read and, unless ``lazy``, without functions."""
    yield node
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not typing_only and (lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from runtime_nodes(child, lazy)


def import_closure(module: str, folder: Path, lazy: bool = False) -> dict[str, int]:
    """Return the code lines of ``module`` and of every module of its package that it needs, in the order they are met."""
    package = Package(folder, lazy)
    closure: dict[str, int] = {}
    waiting = [module]
    while waiting:
        if (current := waiting.pop(0)) not in closure:
            closure[current] = package.lines(current)
            waiting += package.imports(current)
    return closure


def package_totals(folder: Path) -> dict[str, int]:
    """Return the code lines of each direct child of a package."""
    package = Package(folder)
    totals: dict[str, int] = defaultdict(int)
    for module in package.files:
        totals[".".join(module.split(".")[:2])] += package.lines(module)
    return dict(totals)


def table(counts: dict[str, int]) -> str:
    """Return the counts as a Markdown table that ends with their sum."""
    rows = [*sorted(counts.items(), key=lambda row: -row[1]), ("**all**", sum(counts.values()))]
    width = max(len(name) for name, _ in rows)
    header = [f"| {'module':{width}} | lines |", f"| {'-' * width} | ----: |"]
    return "\n".join(header + [f"| {name:{width}} | {count:5d} |" for name, count in rows])


def main() -> None:
    """Print the table of a package, or of a module's closure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", nargs="?", default="rlbook")
    parser.add_argument("--lazy", action="store_true")
    options = parser.parse_args()
    spec = importlib.util.find_spec(options.module.partition(".")[0])
    if spec is None or not spec.submodule_search_locations:
        parser.error(f"{options.module} is not an installed package")
    folder = Path(spec.submodule_search_locations[0])
    is_module = "." in options.module
    print(table(import_closure(options.module, folder, options.lazy) if is_module else package_totals(folder)))


if __name__ == "__main__":
    main()
