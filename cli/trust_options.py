"""Options that say whom a verification believes and what it may fetch, and what they choose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.envelope import Attestation, NitroEnclaveQuote, NitroTpmQuote
from shared.attestation.policy import DEFAULT_POLICY, Policy, Revocation, parse_policy
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, ProtocolError

Command = Callable[..., None]

Gather = Callable[[Attestation, int], Endorsements]
"""Returns what judging evidence at a time (unix seconds) needs."""

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Trust(msgspec.Struct, frozen=True):
    """Whom a verification believes, under which policy, and what finds the endorsements."""

    anchors: TrustAnchors
    policy: Policy
    gather: Gather


def trust_options(command: Command) -> Command:
    """Give a command `--trust-anchor`, `--collateral`, `--policy`, `--offline` and `--pccs`."""
    for option in (
        click.option(
            "--pccs", metavar="URL", default="", help="Collateral service to ask instead of the default ones."
        ),
        click.option("--offline", is_flag=True, help="Fetch no collateral."),
        click.option("--policy", "policy_file", type=_FILE, metavar="FILE", help="Policy file (TOML)."),
        click.option(
            "--collateral",
            type=_FILE,
            metavar="FILE",
            help="Collateral object or bundle; fetch nothing else of the kind.",
        ),
        click.option(
            "--trust-anchor",
            "trust_anchors",
            type=_FILE,
            multiple=True,
            metavar="PEM",
            help="Also trust this root; what it signed is reported as simulated. May be repeated.",
        ),
    ):
        command = option(command)
    return command


def take_trust(given: dict[str, Any], *, save: Path | None = None) -> Trust:
    """Take these options out of a command's, and read the files that they name.

    What was used is written to `save`. Raises `ConfigError`: `policy.*`, `trust.anchor.*`.
    """
    anchors = TrustAnchors.production()
    paths: tuple[Path, ...] = given.pop("trust_anchors")
    for path in paths:
        anchors = anchors.with_extra(path.read_bytes())
    policy_file: Path | None = given.pop("policy_file")
    policy = parse_policy(policy_file.read_bytes()) if policy_file else DEFAULT_POLICY
    collateral: Path | None = given.pop("collateral")
    offline: bool = given.pop("offline")
    gather = _gatherer(
        collateral,
        anchors,
        policy,
        pccs=given.pop("pccs"),
        offline=offline or collateral is not None,
        external=bool(paths),
        save=save,
    )
    return Trust(anchors, policy, gather)


def _gatherer(
    collateral: Path | None,
    anchors: TrustAnchors,
    policy: Policy,
    *,
    pccs: str,
    offline: bool,
    external: bool,
    save: Path | None,
) -> Gather:
    """Return what finds the endorsements: a file, the network, or nothing for evidence that needs none."""

    def gather(attestation: Attestation, now: int) -> Endorsements:
        bundle = NO_ENDORSEMENTS if collateral is None else _bundle(collateral)
        is_aws = isinstance(attestation.quote, NitroEnclaveQuote | NitroTpmQuote)
        if is_aws and policy.nitro.revocation is not Revocation.REQUIRED:
            found = bundle
        else:
            # sockets, TLS and dcap-qvl, which Nitro evidence does not need
            from shared.net.endorsement_source import production_source  # noqa: PLC0415

            source = production_source(bundle=bundle, pccs_url=pccs, offline=offline, external=external)
            found = source.gather(attestation, anchors=anchors, policy=policy, now=now)
        if save is not None:
            _save(save, found)
        return found

    return gather


def _bundle(path: Path) -> Endorsements:
    from shared.attestation.collateral import parse_bundle  # noqa: PLC0415 - few runs bring a bundle

    try:
        return parse_bundle(path.read_bytes())
    except ProtocolError as error:
        raise ConfigError(error.code, f"{path}: {error.message}") from error


def _save(path: Path, found: Endorsements) -> None:
    from shared.attestation.collateral import bundle_json  # noqa: PLC0415 - as above

    try:
        path.write_text(bundle_json(found))
    except OSError as error:
        raise ConfigError("verify.save", f"cannot write {path}: {error.strerror}") from error
