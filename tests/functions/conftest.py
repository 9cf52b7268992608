"""AWS on loopback, one for the session."""

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
