"""Ports and egress of an enclave, as projects write them."""

import pytest

from enclave.vsock.config import parse_config
from shared.compose.enclave_network import (
    MAX_PORTS,
    EgressTarget,
    ForwardedPort,
    read_egress,
    read_ports,
    url_egress,
)
from shared.compose.enclave_service import enclave_service
from shared.compose.services import read_compose_file
from shared.errors import ConfigError
from tests.shared.refusal import refuses


def test_ports_are_read_in_the_short_form() -> None:
    assert read_ports(["8443:443", "80", "53:5353/tcp"]) == (
        ForwardedPort(8443, 443),
        ForwardedPort(80, 80),
        ForwardedPort(53, 5353),
    )


@pytest.mark.parametrize(
    ("port", "code"),
    [
        ("", "nitro.ports.form"),
        ("0", "nitro.ports.form"),
        ("65536", "nitro.ports.form"),
        ("80:0", "nitro.ports.form"),
        ("3000-3005", "nitro.ports.form"),
        ("127.0.0.1:80:80", "nitro.ports.form"),
        ("53:53/udp", "nitro.ports.form"),
        ("${PORT}:80", "nitro.ports.form"),
        ("22", "nitro.ports.reserved"),
        ("8090:80", "nitro.ports.reserved"),
        ("443:80", "nitro.ports.duplicate"),
    ],
)
def test_a_port_that_cannot_be_forwarded_is_refused(port: str, code: str) -> None:
    with refuses(code, ConfigError):
        read_ports(["443", port])


def test_more_ports_than_a_group_has_rules_for_are_refused() -> None:
    with refuses("nitro.ports.count", ConfigError):
        read_ports([str(1000 + number) for number in range(MAX_PORTS)])


@pytest.mark.parametrize(
    "text",
    [
        "Example.com:443",
        "*.example.com:443",
        "example.com",
        "example.com:0",
        "example.com.:443",
        "127.1:80",
        "0x7f000001:80",
        "[::0:1]:443",
        '"; x = 1:443',
        "a" * 260 + ":443",
    ],
)
def test_a_target_that_could_mean_something_else_is_refused(text: str) -> None:
    with refuses("nitro.egress.form", ConfigError):
        read_egress([text])


def test_every_target_that_is_taken_is_taken_by_the_forwarder() -> None:
    targets = read_egress(["kms.example.com:12001", "10.0.0.1:1", "[2001:db8::1]:443", "a_b.example:443"])
    allow = ", ".join(f'{{ host = "{one.host}", ports = [{one.port}] }}' for one in targets)
    config = parse_config(f'[[outbound]]\nname = "egress"\nlisten = 3128\nallow = [{allow}]\n')
    assert all(config.outbound[0].allows(one.host, one.port) for one in targets)


def test_the_same_target_is_named_once() -> None:
    assert read_egress(["a.example:1", "a.example:1"]) == (EgressTarget("a.example", 1),)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://kms.example.com", "kms.example.com:443"),
        ("https://KMS.example.com:12001/prpc", "kms.example.com:12001"),
        ("http://10.0.0.1:8000", "10.0.0.1:8000"),
        ("https://[2001:db8::1]:12001", "[2001:db8::1]:12001"),
    ],
)
def test_a_url_leads_to_one_target(url: str, target: str) -> None:
    assert url_egress(url) == target
    assert [str(one) for one in read_egress([target])] == [target]


@pytest.mark.parametrize(
    "url", ["", "kms.example.com", "ftp://kms.example.com", "https://kms:99999", "https://["]
)
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with refuses("nitro.egress.url", ConfigError):
        url_egress(url)


@pytest.mark.parametrize(
    ("ports", "codes"),
    [
        ("['8443:443']", {"lint.nitro.ports"}),
        ("[{target: 443, published: 8443}]", {"lint.nitro.ports"}),
        ("[{target: 53, published: 53, protocol: udp}]", {"lint.nitro.ports.form"}),
        ("['3000-3005:3000-3005']", {"lint.nitro.ports.form"}),
        ("['22:22']", {"lint.nitro.ports.reserved"}),
    ],
)
def test_a_services_ports_are_linted(ports: str, codes: set[str]) -> None:
    image = "nginx@sha256:" + "ab" * 32
    file = read_compose_file(f"services:\n  web:\n    image: {image}\n    ports: {ports}\n")
    service, findings = enclave_service(file, image_given=False)
    assert service is not None
    assert {one.code for one in findings} == codes
