"""What the pages under docs/ refer to, and what the sources hold: by text and `ast`, nothing is imported."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")))
ROOMS = ("shared", "enclave", "functions", "cli")

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"\.?[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_.-]*)*")
_SUFFIX = re.compile(r"\w\.(?:py|md|sol|proto|mjs|txt|run)$")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_COMPOSED = re.compile(r"[a-z]+\.[a-z0-9_.\0]*|\0\.[a-z_]+")  # f"nitro.{name}", f"{code}.expired"
_CODE = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+")


def text_of(page: str) -> str:
    """Return a page without its fenced blocks (pictures)."""
    return _FENCE.sub("", (REPOSITORY / page).read_text())


def spans(page: str) -> list[str]:
    """Return what stands in backticks."""
    return _SPAN.findall(text_of(page))


def links(page: str) -> list[str]:
    """Return the targets of links, those to other sites left out."""
    return [target for target in _LINK.findall(text_of(page)) if not target.startswith("http")]


def references(page: str) -> list[tuple[str, str]]:
    """Return every (path, symbol) that a page names; the symbol is empty where it names the path alone.

    A path begins with a directory of the repository, is a file at its root, or ends like a source file.
    """
    top = {entry.name for entry in REPOSITORY.iterdir()}
    found = []
    for span in spans(page):
        path, separator, symbol = span.partition("::")
        if not _PATH.fullmatch(path) or (separator and not _NAME.fullmatch(symbol)):
            if separator:
                raise ValueError(f"{page}: {span!r} is not written path::Name")
            continue
        first, slash, _ = path.partition("/")
        is_ours = first in top if slash else path in top and "." in path
        if separator or is_ours or path == "Makefile" or (slash and _SUFFIX.search(path)):
            found.append((path, symbol))
    return found


@cache
def tree(path: str) -> ast.Module:
    """Return a source file's syntax tree."""
    return ast.parse((REPOSITORY / path).read_text(), path)


def has_symbol(path: str, symbol: str) -> bool:
    """Tell whether a file defines `Name`, `Class.method` or `Class.field`."""
    if not path.endswith(".py") or not (REPOSITORY / path).is_file():
        return False
    body = tree(path).body
    for part in symbol.split("."):
        node = next((node for node in body if part in _defined(node)), None)
        if node is None:
            return False
        body = getattr(node, "body", [])
    return True


def all_tests() -> Iterator[tuple[str, str]]:
    """Yield (path, name) of every test function below tests/."""
    for file in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        path = file.relative_to(REPOSITORY).as_posix()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield path, node.name


@cache
def _codes() -> tuple[frozenset[str], tuple[re.Pattern[str], ...]]:
    """Return the error codes that the rooms can raise: literals, and patterns of those that are composed."""
    literals: set[str] = set()
    patterns: set[str] = set()
    for room in ROOMS:
        for file in (REPOSITORY / room).rglob("*.py"):
            for node in ast.walk(tree(file.relative_to(REPOSITORY).as_posix())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    if _CODE.fullmatch(node.value):
                        literals.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    pieces = [
                        str(piece.value) if isinstance(piece, ast.Constant) else "" for piece in node.values
                    ]
                    if _COMPOSED.fullmatch("\0".join(pieces)):
                        patterns.add(
                            "".join(re.escape(piece) if piece else "[a-z0-9_.]+" for piece in pieces)
                        )
    return frozenset(literals), tuple(re.compile(pattern) for pattern in sorted(patterns))


def is_error_code(code: str) -> bool:
    """Tell whether some source can raise an error with this code."""
    literals, patterns = _codes()
    return code in literals or any(pattern.fullmatch(code) for pattern in patterns)


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()
