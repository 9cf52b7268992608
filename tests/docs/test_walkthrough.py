"""The pages name what exists: every path, symbol and link of them."""

import re

import pytest

from tests.docs.references import PAGES, REPOSITORY, ROOMS, has_symbol, links, references, text_of

WALKTHROUGH = "docs/walkthrough.md"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    missing = {path for path, _ in references(page) if not (REPOSITORY / path).exists()}
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_directory_is_written_with_a_slash(page: str) -> None:
    wrong = {path for path, _ in references(page) if (REPOSITORY / path).is_dir() != path.endswith("/")}
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_symbol_exists(page: str) -> None:
    missing = {f"{path}::{name}" for path, name in references(page) if name and not has_symbol(path, name)}
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings}


def test_the_walkthrough_names_plausibly_many() -> None:
    found = set(references(WALKTHROUGH))
    assert sum(1 for _, symbol in found if symbol) >= 70
    assert sum(1 for _, symbol in found if not symbol) >= 50


def test_the_map_has_every_package() -> None:
    named = {path for path, _ in references(WALKTHROUGH)}
    packages = {
        f"{file.parent.relative_to(REPOSITORY).as_posix()}/"
        for room in ROOMS
        for file in (REPOSITORY / room).rglob("__init__.py")
    }
    assert packages
    assert not packages - named


def test_the_checks_see_a_missing_name() -> None:
    assert has_symbol("shared/chain/decision.py", "ChainPolicy.max_head_age")
    assert has_symbol("enclave/kms/service.py", "KmsService.get_app_key")
    assert not has_symbol("enclave/kms/service.py", "KmsService.gone")
    assert not has_symbol("enclave/kms/service.py", "gone")
    assert not has_symbol("enclave/kms/gone.py", "main")


def test_the_readme_fits_one_screen() -> None:
    assert len(text_of("README.md").splitlines()) <= 70
