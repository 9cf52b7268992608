"""Our own modules that a function imports, at start or later, and no others."""

import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.errors import ConfigError

if TYPE_CHECKING:
    from grimp import ImportGraph

REPOSITORY: Final = Path(__file__).resolve().parents[2]

ROOMS: Final = ("shared", "functions")
"""The rooms that a function may import (DESIGN section 3)."""

NEVER: Final = ("functions.packaging", "functions.clouds.local")
"""What serves this computer alone. Code that imports it does so where it is asked for by name."""


def modules_of(entries: Iterable[str]) -> frozenset[str]:
    """Return all modules of ours that the entries import, inside functions too, with their packages.

    Raises `ConfigError("package.entry")` for an entry that does not exist.
    """
    graph = _graph()
    found: set[str] = set()
    wanted = list(entries)
    while wanted:
        module = wanted.pop()
        if module in found or module.startswith(NEVER):
            continue
        if module not in graph.modules:
            raise ConfigError("package.entry", f"there is no module {module} in {' or '.join(ROOMS)}")
        found.add(module)
        wanted += graph.find_modules_directly_imported_by(module)
        if "." in module:
            wanted.append(module.rpartition(".")[0])
    return frozenset(found)


def copy_modules(entries: Iterable[str], to: Path) -> None:
    """Copy the modules of the entries below a directory."""
    for module in modules_of(entries):
        path = Path(*module.split("."))
        package = path / "__init__.py"
        source = package if (REPOSITORY / package).is_file() else path.with_suffix(".py")
        (to / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / source, to / source)


@cache
def _graph() -> "ImportGraph":
    import grimp  # noqa: PLC0415 - of the development environment; the list of targets is read without it

    return grimp.build_graph(*ROOMS, exclude_type_checking_imports=True, cache_dir=None)
