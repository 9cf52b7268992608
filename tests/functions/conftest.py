"""AWS on loopback, one for the session."""

from collections.abc import Iterator

import pytest

from tests.fakes.aws import AwsServer


@pytest.fixture(scope="session")
def aws_server() -> Iterator[AwsServer]:
    with AwsServer() as server:
        yield server


@pytest.fixture
def aws(aws_server: AwsServer) -> Iterator[AwsServer]:
    with aws_server.quiet():
        yield aws_server
