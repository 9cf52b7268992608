"""`[core.custody]` of `kms.toml`: who keeps the root keys between two starts. All of it is policy."""

from typing import Annotated, Literal

import msgspec

from shared.errors import ConfigError

MAX_PATIENCE = 3600
"""Seconds for which a KMS without keys asks its sources; who restarts it can wait as long as they like."""

REQUIRED_PCRS = (2, 14)
"""Which image booted, and which app it runs. Without either, somebody else's software could open the keys."""

_Register = Annotated[int, msgspec.Meta(ge=0, le=23)]


class TpmCustody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[core.custody.tpm]`: the registers of the guest's TPM that the root keys are sealed to.

    The default is Google Cloud's: 0 is the firmware and its kind of memory encryption, 2 the boot disk's
    partitions and UKI, so kernel, initrd and root file system, and 14 the runtime events: app id,
    app-compose, instance, and where the guest has its disk key from. All three come out the same at every
    boot of one instance with one image and one app-compose. What else firmware measures (1, 4, 5, 7) follows
    the machine's type, its disks and its vendor's key lists. Runtime events have one bank, so 14 is empty in
    the others.
    """

    bank: Literal["sha256", "sha384"] = "sha256"
    pcrs: Annotated[tuple[_Register, ...], msgspec.Meta(max_length=24)] = (0, 2, 14)

    def check(self) -> None:
        """Raise `ConfigError("config.custody.pcrs")` unless image and app are among the registers."""
        if missing := [str(index) for index in REQUIRED_PCRS if index not in self.pcrs]:
            raise ConfigError(
                "config.custody.pcrs",
                f"core.custody.tpm.pcrs lacks {' and '.join(missing)}: another image or app on the same "
                "machine could open the root keys",
            )


class PeerCustody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[core.custody.peer]`: the KMSes to take the root keys over from at every start, in this order.

    `domain` is what this KMS serves them as. `patience` is for how many seconds they are asked again.
    """

    source_urls: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=16)]
    domain: str
    patience: Annotated[int, msgspec.Meta(ge=0, le=MAX_PATIENCE)] = 300


class CustodySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[core.custody]`: who keeps the root keys between two starts."""

    type: Literal["file", "tpm", "peer"] = "file"
    tpm: TpmCustody = TpmCustody()
    peer: PeerCustody | None = None

    def check(self, *, auto_bootstraps: bool) -> None:
        """Raise `ConfigError`, `config.custody.*`, for settings that contradict each other."""
        self.tpm.check()
        if self.type != "peer":
            return
        if self.peer is None:
            raise ConfigError(
                "config.custody.peer",
                "custody.type is peer, so [core.custody.peer] must name source_urls and domain",
            )
        if auto_bootstraps:
            raise ConfigError(
                "config.custody.peer", "custody.type is peer, which makes no keys: drop auto_bootstrap_domain"
            )
