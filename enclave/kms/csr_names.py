"""Which names an app may have in its certificate (N-52).

Upstream lets an app ask for any. Here it gets none of the KMS's own, none that stand for another app, no
wildcard, and not more than an app needs: the root that signs is the one that KMS clients pin.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

from shared.errors import PolicyDenied
from shared.ratls.certificates import (
    APP_CA_NAME,
    CLIENT_NAME,
    LONG_DOMAIN_NAME,
    ROOT_CA_NAME,
    TEMP_CA_NAME,
)
from shared.ratls.csr import CsrConfig

MAX_NAMES = 32
"""Alternative names; an app with more has a proxy in front that terminates tls."""

_MAX_NAME = 64  # X.520's upper bound for both parts of the subject
_MAX_DOMAIN = 253
_SHOWN = 40  # characters of a refused name; escaped ones take ten each
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")  # a last label that browsers read as an IPv4 address
_APP_LABEL = re.compile(r"([0-9a-f]{40})(-[0-9]*[a-z]?)?")  # how gateways name an app or an instance
_OWN_NAMES = frozenset(
    name.lower() for name in (ROOT_CA_NAME, TEMP_CA_NAME, APP_CA_NAME, CLIENT_NAME, LONG_DOMAIN_NAME)
)


def check_names(config: CsrConfig, *, kms_domain: str, app_id: bytes, instance_id: bytes) -> None:
    """Refuse a subject, organisation or alternative name that the app may not have.

    Raises `PolicyDenied`: `csr.subject` (length, characters), `csr.names.count`, `csr.names.duplicate`,
    `csr.name.wildcard`, `csr.name.invalid`, `csr.name.kms` for a name of this KMS or its CAs, `csr.name.app`
    for one that begins with the id of another app or instance.
    """
    own = frozenset(identifier.hex() for identifier in (app_id, instance_id) if identifier)
    if config.org_name is not None:
        _check_subject(config.org_name, "organisation", at_least=1)
    _check_subject(config.subject, "subject", at_least=0)
    _check_not_ours(config.subject, kms_domain)
    _check_label(config.subject, own)
    names = config.subject_alt_names
    if len(names) > MAX_NAMES:
        raise PolicyDenied("csr.names.count", f"{len(names)} alternative names, expected at most {MAX_NAMES}")
    seen = set[str]()
    for name in names:
        _check_name(name, own)
        _check_not_ours(name, kms_domain)
        if _canonical(name) in seen:
            raise PolicyDenied("csr.names.duplicate", f"the alternative name {name!r} occurs twice")
        seen.add(_canonical(name))


def _check_subject(text: str, what: str, *, at_least: int) -> None:
    if not at_least <= len(text.encode()) <= _MAX_NAME or not text.isprintable():
        raise PolicyDenied(
            "csr.subject", f"the {what} is not {at_least} to {_MAX_NAME} bytes of printable text"
        )
    if "*" in text:
        raise PolicyDenied("csr.name.wildcard", f"the {what} has a wildcard, which no app gets")


def _check_name(name: str, own: frozenset[str]) -> None:
    if _address(name) is not None:
        return
    if "*" in name:
        raise PolicyDenied("csr.name.wildcard", f"the alternative name {name[:_SHOWN]!r} has a wildcard")
    labels = name.split(".")
    if len(name) > _MAX_DOMAIN or not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
        raise PolicyDenied(
            "csr.name.invalid", f"the alternative name {name[:_SHOWN]!r} is no dns name or ip address"
        )
    _check_label(name, own)


def _check_label(name: str, own: frozenset[str]) -> None:
    for label in name.lower().split("."):
        match = _APP_LABEL.fullmatch(label)
        if match is not None and match[1] not in own:
            raise PolicyDenied(
                "csr.name.app", f"the name {name[:_SHOWN]!r} stands for another app or instance"
            )


def _check_not_ours(name: str, kms_domain: str) -> None:
    if _canonical(name) == _canonical(kms_domain) or name.strip().lower() in _OWN_NAMES:
        raise PolicyDenied("csr.name.kms", f"the name {name[:_SHOWN]!r} is the kms's own")


def _canonical(name: str) -> str:
    """Return one spelling of a name, for comparison alone."""
    address = _address(name)
    if address is None:
        return name.strip().rstrip(".").lower()
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(name)
    except ValueError:
        return None
    return None if "%" in name else address  # a certificate has no place for a scope
