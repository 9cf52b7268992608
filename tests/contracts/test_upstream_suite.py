"""Upstream's forge suite is one command away, and each of its claims has a test that runs everywhere."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contracts.upstream_claims import CLAIMS
from tests.docs.references import REPOSITORY, has_symbol

SUITE = REPOSITORY / "contracts" / "upstream_suite"


def test_every_claim_of_upstreams_suite_has_a_test_here() -> None:
    named = {one for claims in CLAIMS.values() for ours in claims.values() for one in ours}
    assert sum(map(len, CLAIMS.values())) == 59
    assert {suite: len(claims) for suite, claims in CLAIMS.items()} == {
        "EventAudit": 5,
        "DstackApp": 20,
        "DstackKms": 22,
        "UpgradesWithPlugin": 12,
    }
    assert not [one for one in named if not has_symbol(*one.split("::"))]


@pytest.mark.parametrize(
    "package", ["@openzeppelin/contracts", "@openzeppelin/contracts-upgradeable", "solc"]
)
def test_the_suite_compiles_with_what_our_artefacts_are_made_of(package: str) -> None:
    ours, theirs = (
        json.loads((directory / "package.json").read_text())["dependencies"][package]
        for directory in (SUITE.parent, SUITE)
    )
    assert ours == theirs


def test_its_lock_file_names_no_registry() -> None:
    lock = (SUITE / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    assert "registry" not in lock


def test_a_directory_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine: install node and npm, then run make setup")
    done = subprocess.run(
        [node, "run.mjs", str(tmp_path)], cwd=SUITE, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "usage: node run.mjs CHECKOUT" in done.stderr
