"""The RPC certificate is renewed before its evidence goes stale, whatever goes wrong on the way."""

import asyncio

import pytest

from enclave.kms import rpc_identity
from enclave.kms.rpc_identity import RpcIdentity
from shared.errors import UnavailableError

NOW = 1_900_000_000


class Flaky:
    """An attestor that fails as told, once per entry, and then works."""

    def __init__(self, attestor) -> None:
        self._attestor = attestor
        self.failures: list[Exception] = []

    def attest(self, report_data: bytes) -> bytes:
        if self.failures:
            raise self.failures.pop(0)
        return self._attestor.attest(report_data)


@pytest.fixture
def identity(bootstrap, kms_enclave, monkeypatch: pytest.MonkeyPatch) -> tuple[RpcIdentity, Flaky]:
    monkeypatch.setattr(rpc_identity, "RENEW_AFTER", 0)
    monkeypatch.setattr(rpc_identity, "RETRY_AFTER", 0)
    flaky = Flaky(kms_enclave.attestor)
    return RpcIdentity(bootstrap(), flaky, lambda: NOW), flaky


async def _until_renewed(identity: RpcIdentity) -> None:
    first = identity.context()
    async with identity.renewing(None):
        async with asyncio.timeout(30):
            while identity.context() is first:  # noqa: ASYNC110 - nothing signals a renewal
                await asyncio.sleep(0)


def test_a_new_certificate_takes_over_for_new_connections(identity) -> None:
    asyncio.run(_until_renewed(identity[0]))


@pytest.mark.parametrize(
    "failure", [UnavailableError("nsm.unavailable", "no"), RuntimeError("can't start new thread")]
)
def test_a_failed_renewal_is_logged_and_tried_again(identity, failure: Exception, capsys) -> None:
    rpc, flaky = identity
    flaky.failures = [failure]
    asyncio.run(_until_renewed(rpc))
    assert "kms.rpc_certificate.renewal_failed" in capsys.readouterr().out
