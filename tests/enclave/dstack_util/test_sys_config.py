"""The host's own file is hostile input."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.dstack_util.sys_config import parse_sys_config
from shared.errors import ProtocolError
from tests.shared.refusal import refuses


def test_reads_what_a_guest_acts_by_and_ignores_the_rest() -> None:
    config = parse_sys_config(
        b'{"vm_config":"{}","kms_urls":["https://k",""],"tproxy_urls":["https://g"],"pccs_url":"x","more":1}'
    )
    assert (config.kms_urls, config.gateway_urls, config.host_api_url) == (("https://k",), ("https://g",), "")


@pytest.mark.parametrize("raw", [b"{}", b"[]", b'{"vm_config":1}', b'{"vm_config":"","mr_config":{}}'])
def test_refuses_other_fields(raw: bytes) -> None:
    with refuses("sys_config.field", ProtocolError):
        parse_sys_config(raw)


@pytest.mark.parametrize("url", ["https://a b", "https://a\n", "h\u00e9", "x" * 2049, "https://[::1"])
def test_refuses_what_is_no_url(url: str) -> None:
    with refuses("sys_config.url", ProtocolError):
        parse_sys_config(msgspec.json.encode({"vm_config": "", "docker_registry": url}))


@given(
    document=st.dictionaries(
        st.sampled_from(["vm_config", "kms_urls", "gateway_urls", "docker_registry", "host_api_url"]),
        st.none() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=20), max_size=3),
    )
)
def test_no_document_raises_anything_but_a_refusal(document: dict[str, Any]) -> None:
    with suppress(ProtocolError):
        parse_sys_config(msgspec.json.encode(document))


@given(raw=st.binary(max_size=64))
def test_no_bytes_raise_anything_but_a_refusal(raw: bytes) -> None:
    with suppress(ProtocolError):
        parse_sys_config(raw)
