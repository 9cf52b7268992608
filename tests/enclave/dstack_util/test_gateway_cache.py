"""By what a guest is known to its gateway: made once, kept in memory, renewed in time (spec gateway 1.2)."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.dstack_util.gateway_cache import (
    CACHE_PATH,
    REMAINING,
    VALIDITY,
    GatewayIdentity,
    gateway_identity,
)
from shared.errors import PolicyDenied, StorageError
from shared.keys.kdf import p256_key
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.certificates import ROOT_CA_NAME, app_ca_certificate, self_signed_ca
from shared.ratls.csr import CsrConfig
from tests.enclave.dstack_util.machine import RecordedMachine
from tests.enclave.gcp import GUEST_APP_ID, NOW
from tests.shared.refusal import refuses


class Issuer:
    """A KMS's part, which remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[CsrConfig] = []
        self.refuses_evidence = False
        key = generate_private_key(SECP256R1())
        root = self_signed_ca(key, ROOT_CA_NAME, 1, NOW - 10, NOW + 10**8), key
        ca_key = p256_key(bytes(31) + b"\6")
        self._issuer = app_ca_certificate(ca_key, app_id=GUEST_APP_ID, issuer=root), ca_key

    def issue(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> tuple[str, ...]:
        self.asked.append(config)
        if config.ext_quote and self.refuses_evidence:
            raise PolicyDenied("kms.refused", "no")
        leaf = app_certificate(
            key.public_key(),
            config,
            Stamps(app_id=GUEST_APP_ID),
            issuer=self._issuer,
            times=(NOW - 10, config.not_after or 0),
        )
        return tuple(one.public_bytes(Encoding.PEM).decode() for one in (leaf, self._issuer[0]))


class World:
    """One guest's machine and issuer."""

    def __init__(self, root: Path) -> None:
        self.machine = RecordedMachine(root)
        self.issuer = Issuer()
        self.path = self.machine.path(CACHE_PATH)

    def identity(self, now: int = NOW) -> GatewayIdentity:
        return gateway_identity(self.machine, self.issuer, now=now)

    def change(self, **fields: Any) -> None:
        document = json.loads(self.path.read_bytes()) | fields
        self.path.write_text(json.dumps(document))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _leaves(identities: Sequence[GatewayIdentity]) -> set[bytes]:
    return {one.plain.chain[0].public_bytes(Encoding.DER) for one in identities}


def test_asks_for_two_certificates_of_ten_days(world: World) -> None:
    world.identity()
    assert world.issuer.asked == [
        CsrConfig(
            subject="dstack-guest-agent",
            usage_client_auth=True,
            ext_quote=attested,
            ext_app_info=True,
            not_after=NOW + VALIDITY,
        )
        for attested in (False, True)
    ]


def test_keeps_upstreams_fields_for_root_alone(world: World) -> None:
    identity = world.identity()
    assert stat.S_IMODE(world.path.stat().st_mode) == 0o600
    kept = json.loads(world.path.read_bytes())
    assert set(kept) == {
        "client_cert",
        "client_cert_with_quote",
        "client_key",
        "cert_not_after",
        "wg_sk",
        "wg_pk",
    }
    assert (kept["cert_not_after"], kept["wg_pk"]) == (NOW + VALIDITY, identity.wireguard.public)


def test_is_the_same_while_its_certificates_last(world: World) -> None:
    first, second = world.identity(), world.identity(NOW + VALIDITY - REMAINING - 1)
    assert len(_leaves([first, second])) == 1
    assert first.wireguard == second.wireguard
    assert len(world.issuer.asked) == 2


def test_has_new_certificates_in_time_and_the_same_tunnel(world: World) -> None:
    first, second = world.identity(), world.identity(NOW + VALIDITY - REMAINING)
    assert len(_leaves([first, second])) == 2
    assert first.plain.key.private_numbers() != second.plain.key.private_numbers()
    assert first.wireguard == second.wireguard


@pytest.mark.parametrize(
    "fields",
    [
        {"wg_sk": "A"},
        {"wg_pk": "A" * 44},
        {"client_key": ""},
        {"client_cert": ""},
        {"client_cert_with_quote": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"},
        {"cert_not_after": "soon"},
        {"client_cert": None},
    ],
)
def test_a_cache_that_does_not_hold_together_is_made_anew(world: World, fields: dict[str, Any]) -> None:
    world.identity()
    world.change(**fields)
    world.identity()
    assert len(world.issuer.asked) == 4
    world.identity()
    assert len(world.issuer.asked) == 4


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b" " * (1 << 21)])
def test_a_cache_that_is_none_is_made_anew(world: World, content: bytes) -> None:
    world.path.parent.mkdir(parents=True)
    world.path.write_bytes(content)
    assert world.identity().wireguard == world.identity().wireguard


def test_n74_what_is_wrong_with_a_cache_is_said_without_its_keys(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = world.identity()
    world.change(client_cert=7)
    world.identity()
    line = capsys.readouterr().out
    assert json.loads(line)["code"] == "gateway.cache"
    assert identity.wireguard.private not in line
    assert "PRIVATE" not in line


def test_n74_no_repr_shows_a_key(world: World) -> None:
    identity = world.identity()
    assert identity.wireguard.private not in repr(identity)
    assert "PRIVATE" not in repr(identity)


def test_nothing_is_kept_of_half_an_identity(world: World) -> None:
    world.issuer.refuses_evidence = True
    with refuses("kms.refused", PolicyDenied):
        world.identity()
    assert not world.path.exists()


def test_a_cache_that_cannot_be_read_is_said(world: World) -> None:
    world.path.mkdir(parents=True)
    with refuses("setup.unreadable", StorageError):
        world.identity()
