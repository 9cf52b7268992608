"""What a verifier accepts beyond authenticity: one object for all platforms, and the file that states it.

The defaults are the strictest that a healthy platform passes. Whatever a policy accepts beyond them is told
in the verdict's `disabled_checks` (`Policy.relaxations`), so that nobody reads a lax verdict as a strict one.
"""

from enum import StrEnum
from typing import Annotated, Any, Self

import msgspec

from shared.boot_info import AWS_NITRO_TPM, GCP_TDX, NITRO_ENCLAVE, TDX
from shared.errors import ConfigError, InvalidEvidence, PolicyDenied, ProtocolError
from shared.hex import decode_hex

DAY = 86_400
# A policy with a hundred firmware values has 20 KiB.
MAX_POLICY = 256 * 1024
# tomllib's memory grows with the square of a dotted key's parts; ours have two.
MAX_DOTS = 64

# What a file may say; a hundred years is as good as forever.
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=36_525 * DAY)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
# Another spelling would never be that of an advisory that Intel names.
_Advisory = Annotated[str, msgspec.Meta(pattern=r"\AINTEL-SA-[0-9]{5}\Z")]

# GCE Virtual Firmware v2 with TDX memory encryption: the register after its three first events (section 5.3).
GCE_FIRMWARE_V2_TDX = bytes.fromhex("0cca9ec161b09288802e5a112255d21340ed5b797f5fe29cecccfd8f67b9f802")

# x87, SSE, AVX, AVX-512 (5-7), PKRU (9), CET (11, 12), AMX (17, 18): what a guest's kernel manages itself.
# Tracing and power features (PT, UINTR, LBR, HWP) are left out: no dstack guest asks for them.
DEFAULT_XFAM = 0x61AE7


class Revocation(StrEnum):
    """What to do about certificate revocation lists.

    `required`: each certificate that names a list must be covered by a current one. `if_available`: lists
    that were given are consulted, absent ones are told in the verdict. `off`: none is looked at.
    """

    REQUIRED = "required"
    IF_AVAILABLE = "if_available"
    OFF = "off"


class TcbStatus(StrEnum):
    """Intel's words for a platform's state, from best to worst (section 3.6 step 13)."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    # The platform was brought up to date under a running domain (TD 1.5; newer than upstream's list).
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"


class TdAttribute(StrEnum):
    """TD attributes that a policy may admit. Debug is not one of them: such a domain cannot be attested."""

    PKS = "pks"  # bit 30
    KL = "kl"  # bit 31
    PERFMON = "perfmon"  # bit 63


class NitroPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[nitro]`: how old (`max_age`) and how far in the future (`max_future`) a document may be, in seconds.

    For Nitro enclaves and NitroTPM. There is no switch for debug enclaves: their registers are zero and say
    nothing.
    """

    max_age: _Seconds = 3600
    max_future: _Seconds = 300
    revocation: Revocation = Revocation.IF_AVAILABLE

    def check_age(self, timestamp_ms: int, now: int) -> None:
        """Refuse by age: `nitro.stale`, `nitro.future`."""
        age_ms = now * 1000 - timestamp_ms
        if age_ms > self.max_age * 1000:
            raise InvalidEvidence(
                "nitro.stale",
                f"document was made {age_ms // 1000} seconds ago, at most {self.max_age} are allowed",
            )
        if age_ms < -self.max_future * 1000:
            raise InvalidEvidence(
                "nitro.future",
                f"document is {-age_ms // 1000} seconds in the future, at most {self.max_future} are allowed",
            )


class TdxPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tdx]`: which platform states, advisories and domain settings are accepted.

    `accept` lists the TCB statuses that are good enough. `grace` gives a weaker status a number of seconds,
    counted from the date of the TCB level that the platform still has: a recovery event then does not stop an
    honest host overnight. `Revoked` is never accepted. `reject_advisories` refuses by INTEL-SA id whatever
    the status. `max_collateral_age` is in seconds since Intel issued the TCB info, the QE identity and the
    PCK CRL. `xfam` is the mask of state components that a domain may enable. `require_mr_config` refuses a
    zero MRCONFIGID. `allow_unverified_image` accepts evidence whose image needs QEMU's ACPI tables to be
    recomputed; its lane then says `skipped`.
    """

    accept: tuple[TcbStatus, ...] = (TcbStatus.UP_TO_DATE,)
    grace: dict[TcbStatus, _Seconds] = {}
    reject_advisories: tuple[_Advisory, ...] = ()
    min_tcb_evaluation_number: _Number = 0
    max_collateral_age: _Seconds = 7 * DAY
    allow_attributes: tuple[TdAttribute, ...] = ()
    xfam: _Number = DEFAULT_XFAM
    require_mr_config: bool = False
    allow_unverified_image: bool = False

    def relaxations(self, strict: Self) -> list[str]:
        """Return what this policy lets pass that `strict` refuses, one clause each."""
        found = [f"tdx.accept has {status.value}" for status in self.accept if status not in strict.accept]
        found += [f"tdx.grace gives {status.value} {window} s" for status, window in self.grace.items()]
        if self.max_collateral_age > strict.max_collateral_age:
            found.append(f"tdx.max_collateral_age is {self.max_collateral_age} s")
        found += [f"tdx.allow_attributes has {attribute.value}" for attribute in self.allow_attributes]
        if extra := self.xfam & ~strict.xfam:
            found.append(f"tdx.xfam accepts {extra:#x} more")
        if self.allow_unverified_image:
            found.append("tdx.allow_unverified_image is true")
        return found

    def check_tcb(self, status: TcbStatus, advisories: tuple[str, ...], tcb_date: int, now: int) -> str:
        """Return why a platform's state is accepted; `tcb_date` is that of its level, unix seconds.

        Raises `PolicyDenied`: `tdx.tcb.revoked`, `tdx.advisory`, `tdx.tcb.status`, `tdx.tcb.grace`.
        """
        if status is TcbStatus.REVOKED:
            raise PolicyDenied("tdx.tcb.revoked", "platform's tcb is revoked, no policy accepts that")
        rejected = {advisory.casefold() for advisory in self.reject_advisories}
        if refused := sorted(advisory for advisory in advisories if advisory.casefold() in rejected):
            raise PolicyDenied("tdx.advisory", f"advisory {refused[0]} applies, the policy rejects it")
        if status in self.accept:
            return f"{status.value}, which the policy accepts"
        window = self.grace.get(status)
        if window is None:
            raise PolicyDenied(
                "tdx.tcb.status",
                f"tcb status is {status.value}, the policy accepts {', '.join(s.value for s in self.accept)}",
            )
        if now > tcb_date + window:
            raise PolicyDenied(
                "tdx.tcb.grace",
                f"tcb status is {status.value}, its grace of {window} seconds ended at {tcb_date + window}",
            )
        return f"{status.value}, in its grace until {tcb_date + window}"


class Firmware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One accepted PCR0: its 32 bytes, and how whoever listed it came to know them."""

    pcr0: bytes
    provenance: str


class GcpPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gcp]`: accepted firmware (PCR0), revocation of Google's certificates, accepted boot values.

    `rtmr2` lists RTMR2 values (48 bytes), `partition_tables` and `kernels` the PCR2 digests (32 bytes) of
    what the firmware measures before and after the image. With `rtmr2` empty, what the host added to the
    kernel's command line is not judged, and the verdict says so. With the others empty, the event log must
    show that nothing else was loaded; `assume_boot` takes that for granted where a log was stripped, as
    upstream does: whoever chooses the boot disk can then have run a program before the image.
    """

    firmware: tuple[Firmware, ...] = (
        Firmware(GCE_FIRMWARE_V2_TDX, "replayed from the firmware's version strings, as upstream requires"),
    )
    revocation: Revocation = Revocation.REQUIRED
    rtmr2: tuple[bytes, ...] = ()
    partition_tables: tuple[bytes, ...] = ()
    kernels: tuple[bytes, ...] = ()
    assume_boot: bool = False


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole policy."""

    nitro: NitroPolicy = NitroPolicy()
    tdx: TdxPolicy = TdxPolicy()
    gcp: GcpPolicy = GcpPolicy()

    def relaxations(self, tee_variant: str) -> tuple[str, ...]:
        """Return what this policy lets pass on a platform that the defaults refuse, one clause each."""
        strict = DEFAULT_POLICY
        found: list[str] = []
        if tee_variant in {NITRO_ENCLAVE, AWS_NITRO_TPM}:
            found += [
                f"nitro.{name} is {getattr(self.nitro, name)} s"
                for name in ("max_age", "max_future")
                if getattr(self.nitro, name) > getattr(strict.nitro, name)
            ]
            if self.nitro.revocation is Revocation.OFF:
                found.append("nitro.revocation is off")
        if tee_variant in {TDX, GCP_TDX}:
            found += self.tdx.relaxations(strict.tdx)
        if tee_variant == GCP_TDX:
            known = {firmware.pcr0 for firmware in strict.gcp.firmware}
            found += [
                f"gcp.firmware accepts {firmware.pcr0.hex()} ({firmware.provenance})"
                for firmware in self.gcp.firmware
                if firmware.pcr0 not in known
            ]
            if self.gcp.revocation is not Revocation.REQUIRED:
                found.append(f"gcp.revocation is {self.gcp.revocation.value}")
            if self.gcp.assume_boot:
                found.append("gcp.assume_boot is true")
        return tuple(found)


DEFAULT_POLICY = Policy()


def parse_policy(text: bytes) -> Policy:
    """Read a policy file: TOML, hex for bytes and for the mask `tdx.xfam`; unknown keys are refused.

    Raises `ConfigError`: `policy.size`, `policy.syntax`, `policy.invalid`.
    """
    import tomllib  # noqa: PLC0415 - few runs have a policy file, and this is a part of each cold start

    if len(text) > MAX_POLICY:
        raise ConfigError("policy.size", f"policy has {len(text)} bytes, at most {MAX_POLICY} are read")
    if any(line.count(b".") > MAX_DOTS for line in text.split(b"\n")):
        raise ConfigError("policy.size", f"a line of the policy has more than {MAX_DOTS} dots")
    try:
        document = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # tomllib's own, and python's for a number of 5,000 digits
        raise ConfigError("policy.syntax", f"policy is not valid toml: {error}") from error
    try:
        return msgspec.convert(_with_bytes(document), Policy)
    except (msgspec.ValidationError, ProtocolError) as error:
        raise ConfigError("policy.invalid", f"policy: {error}") from error


def _with_bytes(document: dict[str, Any]) -> dict[str, Any]:
    """Turn the file's hex texts into bytes; another shape is left for the conversion to refuse."""
    gcp = document.get("gcp")
    if not isinstance(gcp, dict):
        return document
    for entry in gcp.get("firmware", ()) if isinstance(gcp.get("firmware"), list) else ():
        if isinstance(entry, dict) and isinstance(text := entry.get("pcr0"), str):
            entry["pcr0"] = decode_hex(text, what="gcp.firmware.pcr0", length=32, prefix=False)
    for name, length in (("rtmr2", 48), ("partition_tables", 32), ("kernels", 32)):
        if isinstance(values := gcp.get(name), list):
            gcp[name] = [
                decode_hex(text, what=f"gcp.{name}", length=length, prefix=False)
                if isinstance(text, str)
                else text
                for text in values
            ]
    return document
