"""The client of the specification stays a second reading: it imports none of our code."""

import ast
import sys
from pathlib import Path

CLIENT = Path(__file__).parent / "spec_client"
ITSELF = "tests.interop.spec_client"
THIRD_PARTIES = {"cryptography", "cbor2"}


def _imported(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module or "")
    return found


def _is_foreign(module: str) -> bool:
    if module == ITSELF or module.startswith(f"{ITSELF}."):
        return True
    top = module.partition(".")[0]
    return (top in sys.stdlib_module_names and top != "importlib") or top in THIRD_PARTIES


def test_the_client_imports_nothing_of_ours() -> None:
    sources = list(CLIENT.rglob("*.py"))
    assert len(sources) > 5
    ours = {
        (file.name, module)
        for file in sources
        for module in _imported(file.read_text())
        if not _is_foreign(module)
    }
    assert ours == set()


def test_an_import_of_ours_is_noticed() -> None:
    assert not _is_foreign("shared.ratls.csr")
    assert not _is_foreign("tests.enclave.gcp")
