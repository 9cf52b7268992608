"""AWS on loopback, one for the session, and a store that does not wait for the disk."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fakes.aws import AwsServer


@pytest.fixture(scope="session")
def aws_server() -> "Iterator[AwsServer]":
    from tests.fakes.aws import AwsServer  # noqa: PLC0415 - moto takes a second that few tests need

    with AwsServer() as server:
        yield server


@pytest.fixture
def aws(aws_server: "AwsServer") -> "Iterator[AwsServer]":
    with aws_server.quiet():
        yield aws_server


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have SQLite not wait for the disk: tests end processes, and none takes the power from a machine."""
    monkeypatch.setattr("functions.stores.sqlite._SYNCHRONOUS", "OFF")
