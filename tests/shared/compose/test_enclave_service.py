"""The one service that becomes an enclave."""

import pytest

from shared.compose.enclave_service import enclave_service
from shared.compose.findings import Finding, Severity, has_errors
from shared.compose.services import Service, read_compose_file

PINNED = "nginx@sha256:" + "ab" * 32


def judged(text: str, *, image_given: bool = False) -> tuple[Service | None, tuple[Finding, ...]]:
    return enclave_service(read_compose_file(text), image_given=image_given)


def test_takes_one_pinned_service() -> None:
    service, findings = judged(f"services: {{web: {{image: '{PINNED}', restart: always, x-note: y}}}}")
    assert service is not None
    assert findings == ()


def test_several_services_are_refused_with_the_reason() -> None:
    service, findings = judged("services: {web: {image: a}, db: {image: b}}")
    assert service is None
    assert [one.code for one in findings] == ["lint.nitro.services"]
    assert "2 services (web, db)" in findings[0].message


def test_n73_an_unpinned_image_is_an_error() -> None:
    assert [one.code for one in judged("services: {web: {image: nginx}}")[1]] == ["lint.image.digest"]


def test_the_project_may_name_the_image_instead() -> None:
    assert judged("services: {web: {image: nginx}}", image_given=True)[1] == ()


def test_a_dockerfile_is_no_fault() -> None:
    assert judged("services: {web: {build: .}}")[1] == ()


@pytest.mark.parametrize("key", ["environment: {A: x}", "command: [x]", "volumes: [a]", "depends_on: [x]"])
def test_settings_outside_of_the_image_are_refused(key: str) -> None:
    _, findings = judged(f"services: {{web: {{image: '{PINNED}', {key}}}}}")
    assert [one.code for one in findings] == ["lint.nitro.key"]
    assert has_errors(findings)


def test_ports_are_noted() -> None:
    _, findings = judged(f"services: {{web: {{image: '{PINNED}', ports: ['80:80']}}}}")
    assert [(one.code, one.severity) for one in findings] == [("lint.nitro.ports", Severity.NOTE)]


def test_what_a_build_is_called_pins_nothing_and_is_no_fault() -> None:
    assert judged("services: {web: {build: ., image: 'demo:latest'}}")[1] == ()


def test_other_files_may_hold_more_services() -> None:
    _, findings = judged(f"services: {{web: {{image: '{PINNED}'}}}}\ninclude: [more.yaml]")
    assert [(one.code, one.severity) for one in findings] == [("lint.include", Severity.ERROR)]
