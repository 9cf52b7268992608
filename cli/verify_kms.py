"""`dstack-cloud verify-kms`: is this running key server real, whose keys does it have, and how lax is it."""

import json
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click
import msgspec

from cli.deploy_options import Chosen, chain_options, take_chosen
from cli.trust_options import Trust, take_trust, trust_options
from shared.errors import ConfigError, DstackError, UnavailableError

if TYPE_CHECKING:  # `--help` needs none of it
    from cli.kms_audit import Seen
    from cli.kms_meta import BootstrapRecord, Meta
    from cli.kms_proof import Prover
    from shared.attestation.verify import VerifiedAttestation
    from shared.net.attested_client import AttestedConnection

TIMEOUT: Final = 60.0
"""Seconds for the handshake, in which collateral may have to be fetched, and again for the answer."""

_DEFAULT_PORT: Final = 443
_MAX_TEXT: Final = 200  # characters of the server's own words that an error repeats
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_JSON: Final = {"content-type": "application/json"}


class Target(msgspec.Struct, frozen=True):
    """Where a KMS listens, and the path of its methods."""

    url: str
    host: str
    port: int
    path: str


@click.command("verify-kms")
@click.argument("url")
@trust_options
@chain_options
@click.option(
    "--bootstrap-info",
    type=_FILE,
    metavar="FILE",
    help="The record that the operator published when the keys were made, for the one that the KMS shows.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_kms(url: str, bootstrap_info: Path | None, *, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Verify a running key server, from outside and by its evidence alone.

    URL is https://HOST[:PORT]. Nothing is sent before the server's certificate was found to carry evidence
    over its own TLS key. With --kms-contract, --chain-id and --rpc (twice, of different hosts) the server's
    root keys are compared with those that the contract publishes, and the contract must allow this server,
    proven in two blocks. What the server says of its own strictness is listed.

    Exit codes: 0 verified, 1 the network failed, 2 usage, 3 refused. The page docs/verification.md explains
    the output, lane by lane.
    """
    trust, chosen = take_trust(given), take_chosen(given)
    target, prover = parse_target(url), _prover(chosen)
    record = None if bootstrap_info is None else bootstrap_info.read_bytes()
    # PLC0415: TLS and proofs are not loaded to print the help
    from cli.kms_report import report_on  # noqa: PLC0415

    now = int(time.time())
    seen = Visit(trust, prover, now).see(target, record)
    report = report_on(seen, url=target.url, hostname=target.host, now=now)
    if as_json:
        # through msgspec's bytes, which have no infinities, to json's ascii, which a terminal can bear
        click.echo(json.dumps(json.loads(msgspec.json.encode(report)), indent=2))
    else:
        from cli.verify_kms_output import print_kms_report  # noqa: PLC0415 - as above

        print_kms_report(report)
    sys.exit(report.exit_code)


def parse_target(url: str) -> Target:
    """Read the URL of a KMS, with or without `/prpc` at its end. Raises `ConfigError("verify_kms.url")`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError("verify_kms.url", f"{url!a} is no url: {error}") from error
    if parts.scheme != "https" or not host or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError("verify_kms.url", f"{url!a} is not https://HOST[:PORT]")
    base = parts.path.rstrip("/").removesuffix("/prpc")
    return Target(url, host, _DEFAULT_PORT if port is None else port, f"{base}/prpc/GetMeta?json")


class Visit:
    """One look at a KMS at `now` (unix seconds): connect, ask, prove. What it brings back, others judge."""

    def __init__(self, trust: Trust, prover: "Prover | None", now: int) -> None:
        self._trust = trust
        self._prover = prover
        self._now = now

    def see(self, target: Target, record: bytes | None) -> "Seen":
        """Return what was seen; a step's failure is in it. Raises `ConfigError`: that is the auditor's."""
        from cli.kms_audit import Seen, attempt, subject  # noqa: PLC0415
        from cli.kms_meta import Meta, parse_record, record_of  # noqa: PLC0415

        leaf, server, meta = self._ask(target)
        contract = None if self._prover is None else self._prover.contract
        seen = Seen(leaf=leaf, server=server, meta=meta, contract=contract)
        if server is None or isinstance(server, DstackError) or not isinstance(meta, Meta):
            return seen
        if self._prover is not None:
            asked = attempt(lambda: subject(server, meta))
            proven = self._prover.prove(asked, now=self._now)
            seen = msgspec.structs.replace(seen, proven=proven)
        told = meta.bootstrap_info
        if record is None and told is None:
            return seen
        found = attempt(lambda: parse_record(record) if record is not None else record_of(told or {}))
        evidence = None if isinstance(found, DstackError) else attempt(lambda: self._bootstrap(found))
        return msgspec.structs.replace(seen, record=found, record_evidence=evidence)

    def _ask(
        self, target: Target
    ) -> "tuple[bytes | DstackError, VerifiedAttestation | DstackError | None, Meta | DstackError | None]":
        """Connect, check who answers, and only then ask for GetMeta, over the same connection."""
        from cli.kms_audit import attempt  # noqa: PLC0415
        from shared.attestation.identity import check_release_image  # noqa: PLC0415
        from shared.net.attested_client import AttestedConnection  # noqa: PLC0415
        from shared.net.dialer import DirectDialer  # noqa: PLC0415

        leaf: bytes | None = None
        server: VerifiedAttestation | DstackError | None = None

        def check_peer(der: bytes) -> None:
            nonlocal leaf, server
            leaf = der
            server = self._server(der)
            check_release_image(server)

        try:
            connection = AttestedConnection.connect(
                DirectDialer(), target.host, target.port, check_peer=check_peer, timeout=TIMEOUT
            )
        except ConfigError:
            raise
        except DstackError as error:
            return (error, None, None) if leaf is None else (leaf, server or error, error)
        with connection:
            return leaf or b"", server, attempt(lambda: _meta(connection, target))

    def _server(self, leaf: bytes) -> "VerifiedAttestation":
        """Verify the evidence in a server's certificate, over its key."""
        from shared.ratls.peer import check_source_kms_certificate, ratls_report_data  # noqa: PLC0415

        envelope = check_source_kms_certificate(leaf, now=self._now)
        return self._verify(envelope, ratls_report_data(leaf), own_time=False)

    def _bootstrap(self, record: "BootstrapRecord") -> "VerifiedAttestation":
        from shared.attestation.report_data import bootstrap_report_data  # noqa: PLC0415

        report_data = bootstrap_report_data(record.ca_pubkey, record.k256_pubkey)
        return self._verify(record.attestation, report_data, own_time=True)

    def _verify(self, envelope: bytes, report_data: bytes, *, own_time: bool) -> "VerifiedAttestation":
        """Verify evidence now, or an AWS document at its own time, unless that is in the future."""
        from cli.verify import document_time  # noqa: PLC0415
        from shared.attestation.envelope import decode_envelope  # noqa: PLC0415
        from shared.attestation.verify import verify_attestation  # noqa: PLC0415

        attestation = decode_envelope(envelope)
        made_at = document_time(attestation) if own_time else None
        now = self._now if made_at is None else min(made_at, self._now)
        return verify_attestation(
            attestation,
            now=now,
            anchors=self._trust.anchors,
            policy=self._trust.policy,
            endorsements=self._trust.gather(attestation, now),
            report_data=report_data,
        )


def _meta(connection: "AttestedConnection", target: Target) -> "Meta":
    """Ask a connection that was checked. Raises `UnavailableError("kms_audit.status")`, what is parsed."""
    from cli.kms_meta import MAX_META, parse_meta  # noqa: PLC0415

    response = connection.request("POST", target.path, headers=_JSON, max_bytes=MAX_META)
    if response.status != HTTPStatus.OK:
        text = response.body[:_MAX_TEXT].decode(errors="replace")
        raise UnavailableError("kms_audit.status", f"GetMeta was answered with {response.status}: {text!a}")
    return parse_meta(response.body)


def _prover(chosen: Chosen) -> "Prover | None":
    """Return who asks about the contract that the options name.

    Raises `ConfigError`: `verify_kms.chain`, `plan.option`, and what `Prover` raises.
    """
    from cli.kms_audit import Contract  # noqa: PLC0415
    from cli.kms_proof import Prover  # noqa: PLC0415

    given = {
        "--kms-contract": chosen.contract,
        "--chain-id": chosen.chain_id,
        "--rpc": chosen.rpc_urls or None,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if chosen.contract is None or chosen.chain_id is None or missing:
        raise ConfigError(
            "verify_kms.chain", f"a contract is named by three options, and {' and '.join(missing)} lacks"
        )
    hosts = tuple(urlsplit(url).hostname or "" for url in chosen.rpc_urls)
    return Prover(Contract(chosen.chain_id, chosen.contract, hosts), chosen.rpc_urls)
