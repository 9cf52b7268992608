"""Which stand-ins for a cloud's APIs are taken from the environment."""

import pytest

from functions.google_api.endpoint import gcp_endpoint
from shared.errors import ConfigError
from tests.shared.refusal import refuses


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://localhost:9/", "http://[::1]:9"])
def test_a_stand_in_of_this_machine_is_taken(url: str) -> None:
    assert gcp_endpoint({"DSTACK_GCP_ENDPOINT": url}) == url.rstrip("/")


def test_there_is_none_unless_it_is_named() -> None:
    assert gcp_endpoint({}) == ""


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:9", "https://compute.example", "http://127.0.0.1.example", "127.0.0.1:9"]
)
def test_a_stand_in_elsewhere_is_refused(url: str) -> None:
    with refuses("gcp.endpoint", ConfigError):
        gcp_endpoint({"DSTACK_GCP_ENDPOINT": url})
