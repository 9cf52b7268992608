"""`.sys-config.json`: where the host says that things are (spec deploy section 1.5, guest-agent 6.2).

All of it is hostile input. A URL in it is an address and nothing more: whoever answers there must prove who
it is by what is measured. Collateral URLs and an attestation proxy are not taken from it at all.
"""

from urllib.parse import urlsplit

import msgspec

from shared.compose.shared_files import SYS_CONFIG
from shared.errors import ProtocolError
from shared.measurement.config_disk import MAX_BYTES
from shared.strict_json import decode_json

MAX_URLS = 16
_MAX_URL = 2048


class SysConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that a guest acts by. `vm_config` and `mr_config` are JSON texts inside the document."""

    vm_config: str
    kms_urls: tuple[str, ...] = ()
    gateway_urls: tuple[str, ...] = ()
    docker_registry: str = ""
    host_api_url: str = ""
    mr_config: str = ""


class _File(msgspec.Struct, frozen=True):
    vm_config: str
    kms_urls: tuple[str, ...] | None = None
    gateway_urls: tuple[str, ...] | None = None
    tproxy_urls: tuple[str, ...] | None = None
    docker_registry: str | None = None
    host_api_url: str | None = None
    mr_config: str | None = None


def parse_sys_config(raw: bytes) -> SysConfig:
    """Read the file; fields that are not known are ignored.

    Raises `ProtocolError`: `sys_config.size`, `.syntax`, `.duplicate_key`, `.depth`, `.field`, and
    `sys_config.url` for more than 16 URLs of a kind, or text that is no printable URL.
    """
    document = decode_json(raw, what=SYS_CONFIG, code="sys_config", max_bytes=MAX_BYTES[SYS_CONFIG])
    try:
        file = msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise ProtocolError(
            "sys_config.field", f"{SYS_CONFIG} does not fit its fields: {str(error)[:160]!a}"
        ) from error
    return SysConfig(
        vm_config=file.vm_config,
        kms_urls=_urls(file.kms_urls or (), "kms_urls"),
        gateway_urls=_urls(file.gateway_urls or file.tproxy_urls or (), "gateway_urls"),
        docker_registry=_url(file.docker_registry or "", "docker_registry"),
        host_api_url=_url(file.host_api_url or "", "host_api_url"),
        mr_config=file.mr_config or "",
    )


def _urls(urls: tuple[str, ...], what: str) -> tuple[str, ...]:
    if len(urls) > MAX_URLS:
        raise ProtocolError("sys_config.url", f"{what} has {len(urls)} urls, at most {MAX_URLS} are taken")
    return tuple(_url(url, what) for url in urls if url)


def _url(url: str, what: str) -> str:
    printable = url.isascii() and url.isprintable() and " " not in url
    try:
        urlsplit(url)
    except ValueError:
        printable = False
    if not printable or len(url) > _MAX_URL:
        raise ProtocolError("sys_config.url", f"{what} holds {url[:80]!a}, expected a printable url")
    return url
