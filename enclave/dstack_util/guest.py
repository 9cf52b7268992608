"""What `setup` needs of the guest that it boots, besides what every daemon does."""

from typing import Protocol, runtime_checkable

from enclave.devices.runtime_events import RuntimeEventLog
from enclave.devices.tpm_nv import NvStorage
from enclave.platform import Platform
from enclave.tee.tee import Tee
from shared.errors import ConfigError


@runtime_checkable
class BootingTee(Tee, Protocol):
    """A guest with registers that its boot extends."""

    def event_log(self) -> RuntimeEventLog:
        """Return the log of this boot."""
        ...

    def instance_binding(self) -> bytes:
        """Return what goes into the instance id besides seed and app id."""
        ...

    def nonvolatile(self) -> NvStorage | None:
        """Return the TPM's indexes; None where there is no TPM."""
        ...


def booting_tee(platform: Platform) -> BootingTee:
    """Return the guest of `platform`.

    Raises `ConfigError("setup.unsupported")` for one that does not boot this way, such as an enclave.
    """
    if not isinstance(platform.tee, BootingTee):
        raise ConfigError("setup.unsupported", "this guest is not booted by setup, only tdx guests are")
    return platform.tee
