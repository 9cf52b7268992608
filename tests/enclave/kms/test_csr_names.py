"""Names that an app gets in its certificate, and names that it does not (N-52)."""

import pytest

from enclave.kms.csr_names import MAX_NAMES, check_names
from shared.errors import PolicyDenied
from shared.ratls.csr import CsrConfig
from tests.shared.refusal import refuses

DOMAIN = "kms.example.com"
APP_ID = bytes([0xAB]) * 20
INSTANCE_ID = bytes([0xCD]) * 20
OTHER = "ef" * 20


def check(subject: str = "app", names: tuple[str, ...] = (), domain: str = DOMAIN, **config: str) -> None:
    asked = CsrConfig(subject=subject, subject_alt_names=names, **config)
    check_names(asked, kms_domain=domain, app_id=APP_ID, instance_id=INSTANCE_ID)


@pytest.mark.parametrize(
    "name",
    [
        *("localhost", "app.example.com", "a_b.example.com", "xn--bcher-kva.example", "10.0.0.1", "::1"),
        *(f"{APP_ID.hex()}.gateway.example.com", f"{INSTANCE_ID.hex()}-8080s.gateway.example.com"),
        *("sub.kms.example.com", "kms.example.com.evil.test"),
    ],
)
def test_gives_a_name(name: str) -> None:
    check(names=(name,))


def test_gives_no_name_and_no_subject() -> None:
    check(subject="")


@pytest.mark.parametrize("name", [DOMAIN, DOMAIN.upper(), "Kms.Example.com"])
def test_n52_refuses_the_name_of_the_kms(name: str) -> None:
    with refuses("csr.name.kms", PolicyDenied):
        check(names=("app.example.com", name))
    with refuses("csr.name.kms", PolicyDenied):
        check(subject=name)


@pytest.mark.parametrize("name", [f"{DOMAIN}.", f" {DOMAIN} "])
def test_n52_refuses_another_spelling_of_it_as_a_subject(name: str) -> None:
    with refuses("csr.name.kms", PolicyDenied):
        check(subject=name)


@pytest.mark.parametrize("name", ["192.0.2.1", "::ffff:192.0.2.1", "::ffff:c000:201"])
def test_n52_refuses_the_address_of_the_kms(name: str) -> None:
    with refuses("csr.name.kms", PolicyDenied):
        check(names=(name,), domain="192.0.2.1")


@pytest.mark.parametrize("name", ["Dstack KMS CA", "dstack app ca", "Dstack Client Temp CA", "Dstack KMS"])
def test_n52_refuses_the_name_of_a_ca(name: str) -> None:
    with refuses("csr.name.kms", PolicyDenied):
        check(subject=name)


@pytest.mark.parametrize("name", ["*", "*.example.com", "a.*.com", "a*.example.com"])
def test_n52_refuses_a_wildcard_in_a_request(name: str) -> None:
    with refuses("csr.name.wildcard", PolicyDenied):
        check(names=(name,))
    with refuses("csr.name.wildcard", PolicyDenied):
        check(subject=name)


@pytest.mark.parametrize("name", [f"{OTHER}.example.com", f"{OTHER.upper()}-443.example.com", f"a.{OTHER}-s"])
def test_n52_refuses_the_name_of_another_app(name: str) -> None:
    with refuses("csr.name.app", PolicyDenied):
        check(names=(name,))
    with refuses("csr.name.app", PolicyDenied):
        check(subject=name[:64])


def test_n52_refuses_more_names_than_an_app_needs() -> None:
    names = tuple(f"a{index}.example.com" for index in range(MAX_NAMES + 1))
    check(names=names[1:])
    with refuses("csr.names.count", PolicyDenied):
        check(names=names)


@pytest.mark.parametrize("twice", [("a.test", "A.test"), ("10.0.0.1", "::ffff:10.0.0.1"), ("::1", "0:0::1")])
def test_refuses_a_name_twice(twice: tuple[str, ...]) -> None:
    with refuses("csr.names.duplicate", PolicyDenied):
        check(names=twice)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "a..b",
            "a.",
            "-a.test",
            "a-.test",
            "a b",
            "a\0b",
            "bücher.example",
            "a" * 64,
            "fe80::1%eth0",
        ),
        *("1.2.3", "0x7f.1", "1.2.3.4.5", "01.2.3.4", "a.0x7f", "http://a.test", "a.test:443", "[::1]"),
        ".".join(["a" * 60] * 5),
        "\U000e0001" * 300,
    ],
)
def test_refuses_what_is_no_name(name: str) -> None:
    with refuses("csr.name.invalid", PolicyDenied):
        check(names=(name,))


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "a" * 65, "é" * 33, "\u202eabc"])
def test_refuses_a_subject_that_cannot_be_shown(text: str) -> None:
    with refuses("csr.subject", PolicyDenied):
        check(subject=text)
    with refuses("csr.subject", PolicyDenied):
        check(org_name=text)


def test_refuses_an_empty_organisation() -> None:
    with refuses("csr.subject", PolicyDenied):
        check(org_name="")
