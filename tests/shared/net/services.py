"""Collateral services that behave, and that misbehave, for the tests of what fetches from them."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from enclave.simulator.pccs import Answer, CollateralServer, Provider
from shared.attestation.endorsements import TdxCollateral
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient

FMSPC = bytes.fromhex("00a06d080000")
PEM = "-----BEGIN CERTIFICATE-----\nMII+/w==\n-----END CERTIFICATE-----\n"


def collateral(fmspc: bytes = FMSPC, tag: str = "first") -> TdxCollateral:
    """Return collateral of the right shape that nobody signed."""
    return TdxCollateral(
        pck_crl_issuer_chain=PEM + PEM,
        root_ca_crl=b"\x30root" + tag.encode(),
        pck_crl=b"\x30pck" + tag.encode(),
        tcb_info_issuer_chain=PEM,
        # an odd spelling that no encoder would give back
        tcb_info=f'{{"version" : 3,\n "id":"TDX","fmspc":"{fmspc.hex().upper()}", "x":"\\u00e9é/\\/"}}',
        tcb_info_signature=b"\x01" * 64,
        qe_identity_issuer_chain=PEM,
        qe_identity='{"id":"TD_QE",  "version":2}',
        qe_identity_signature=b"\x02" * 64,
    )


class Misbehaving(CollateralServer):
    """Answers whose path `spoil` names are changed on their way out."""

    def __init__(self, provider: Provider, spoil: dict[str, Callable[[Answer], Answer]]) -> None:
        super().__init__(provider)
        self._spoil = spoil

    def answer(self, target: str) -> Answer:
        answer = super().answer(target)
        for part, change in self._spoil.items():
            if part in target:
                answer = change(answer)
        return answer


def changed(**fields: object) -> Callable[[Answer], Answer]:
    return lambda answer: msgspec.structs.replace(answer, **fields)


class RoutedDialer:
    """Every host is one loopback port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.dialed: list[tuple[str, int]] = []

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        self.dialed.append((host, port))
        return DirectDialer().dial("127.0.0.1", self._port, timeout)


@contextmanager
def plain_client() -> Iterator[HttpClient]:
    http = HttpClient(DirectDialer(), timeout=30)
    try:
        yield http
    finally:
        http.close()
