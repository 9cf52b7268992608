"""docs/kms-config.md has every setting with its default, and no error code that nothing raises."""

import re

import msgspec
import pytest

from enclave.dstack_util import enclave_config
from enclave.kms import config, custody_config
from enclave.kms.audit import MAX_LINE
from enclave.kms.http import SIGN_CERT_BODY_BYTES
from enclave.serving import prpc
from enclave.serving.attested_tls import DEFAULT_LIMITS
from enclave.serving.rate_limit import MAX_BUCKETS
from enclave.vsock.config import Limits
from shared.net.fetch import DEFAULT_MAX_BYTES
from shared.net.quorum import MAX_ENDPOINTS
from tests.docs.references import REPOSITORY, is_error_code

PAGE = (REPOSITORY / "docs" / "kms-config.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith("|---")
]


def _keys(cell: str) -> list[str]:
    return [span.rpartition(".")[2] for span in re.findall(r"`([a-z0-9_.]+)`", cell)]


@pytest.mark.parametrize(
    "settings",
    [
        *(
            config.Proof,
            config.Onboard,
            config.Rpc,
            config.RootCa,
            config.Metrics,
            config.Admin,
            config.Image,
            config.RateLimits,
            custody_config.TpmCustody,
            custody_config.PeerCustody,
        ),
        *(enclave_config.Kms, enclave_config.Trust, enclave_config.Evidence, Limits),
    ],
)
def test_has_every_setting(settings: type[msgspec.Struct]) -> None:
    documented = {key for row in ROWS for key in _keys(row[0])}
    assert not set(settings.__struct_fields__) - documented


def test_has_every_setting_of_core() -> None:
    tables = {"attestation", "auth_api", "custody", "onboard", "admin", "image", "limits", "metrics"}
    documented = {key for row in ROWS for key in _keys(row[0])}
    assert not set(config.Core.__struct_fields__) - tables - documented


@pytest.mark.parametrize("settings", [config.Proof, config.Core, config.RateLimits, Limits])
def test_gives_the_defaults(settings: type[msgspec.Struct]) -> None:
    checked = 0
    for field in msgspec.structs.fields(settings):
        default = field.default
        if not isinstance(default, bool | int | float):
            continue
        expected = str(default).lower() if isinstance(default, bool) else f"{default:g}"
        given = {row[1] for row in ROWS if _keys(row[0]) == [field.name]}
        assert expected in given, field.name
        checked += 1
    assert checked >= 5


def test_gives_the_limits_that_are_not_configured() -> None:
    http = DEFAULT_LIMITS
    expected = {
        "open connections of a listener": f"{http.connections}",
        "TLS handshake": f"{http.handshake_seconds:g} s",
        "until the first request": f"{http.idle_seconds:g} s",
        "between requests": f"{http.keep_alive_seconds} s",
        "one request, head and body": f"{http.request_seconds:g} s",
        "a peer that reads nothing of its answer": f"{http.stall_seconds:g} s",
        "from close to cut": f"{http.close_seconds:g} s",
        "head of a request": f"{http.head_bytes // 1024} KiB",
        "body of a request": f"{prpc.DEFAULT_BODY_BYTES // 1024} KiB, "
        f"SignCert {SIGN_CERT_BODY_BYTES // 1024} KiB",
        "objects and arrays in it": f"{prpc.MAX_BRACKETS}",
        "threads for callers with evidence": f"{prpc.KNOWN_THREADS}",
        "threads for verifying evidence": f"{prpc.IDENTIFYING_THREADS}",
        "threads for callers without evidence": f"{prpc.ANONYMOUS_THREADS}",
        "buckets of each limit above": f"{MAX_BUCKETS}",
        "endpoints of the quorum": f"{MAX_ENDPOINTS}",
        "an answer that is fetched": f"{DEFAULT_MAX_BYTES // 2**20} MiB",
        "a line of the audit log": f"{MAX_LINE // 1024} KiB",
    }
    rows = {row[0]: row[1] for row in ROWS if len(row) == 3}
    assert {name: rows.get(name) for name in expected} == expected


def test_shows_what_get_meta_reports() -> None:
    proto = (REPOSITORY / "shared" / "rpc" / "kms.proto").read_text()
    message = re.search(r"message KmsPolicy \{(.*?)\}", proto, re.DOTALL)
    assert message
    names = re.findall(r"\w+ (\w+) = \d+;", message[1])
    assert len(names) >= 11
    assert not [name for name in names if f'"{name}"' not in PAGE]


def test_every_error_code_can_be_raised() -> None:
    codes = {
        code
        for row in ROWS
        for code in re.findall(r"`([a-z_]+(?:\.[a-z0-9_]+)+)`", row[0])
        if code.partition(".")[0]
        in {"auth", "chain", "config", "identity", "net", "nitro", "proof", "quorum"}
    }
    assert len(codes) >= 30
    assert not {code for code in codes if not is_error_code(code)}
