"""The SDK simulator's configuration: the agent's, with upstream's simulator keys and defaults.

    [default.core.simulator]
    attestation_file = "attestation.bin"
    patch_report_data = true
    mock_attestation_seed = "<64 hex digits>"      # optional: quotes are signed, under a root of this seed

Files and sockets are relative to the directory that the simulator serves.
"""

from pathlib import Path
from typing import Final

import msgspec

from enclave.agent.config import AgentConfig, Core, Default, Listener
from enclave.simulator.tdx import SimulatedIntel
from shared.hex import decode_hex_setting

CONFIG_FILE: Final = "dstack.toml"
SEED_BYTES: Final = 32


class SimulatorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[default.core.simulator]`."""

    attestation_file: str = "attestation.bin"
    patch_report_data: bool = True
    mock_attestation_seed: str | None = None

    def intel(self) -> SimulatedIntel | None:
        """Return who signs the quotes, None for nobody. Raises `ConfigError("simulator.seed")`."""
        if self.mock_attestation_seed is None:
            return None
        seed = decode_hex_setting(
            self.mock_attestation_seed, what="mock_attestation_seed", length=SEED_BYTES, code="simulator.seed"
        )
        return SimulatedIntel.from_seed(seed)


class SimulatorCore(Core, frozen=True, kw_only=True):
    """`[default.core]`."""

    keys_file: str = "appkeys.json"
    compose_file: str = "app-compose.json"
    sys_config_file: str = "sys-config.json"
    simulator: SimulatorSettings = SimulatorSettings()


class SimulatorDefault(Default, frozen=True, kw_only=True):
    """`[default]`."""

    core: SimulatorCore = SimulatorCore()


class SimulatorConfig(AgentConfig, frozen=True, kw_only=True):
    """The whole file."""

    default: SimulatorDefault = SimulatorDefault()
    internal: Listener = Listener(address="unix:./dstack.sock")
    internal_v0: Listener = msgspec.field(default=Listener(address="unix:./tappd.sock"), name="internal-v0")
    external: Listener = Listener(address="unix:./external.sock")
    guest_api: Listener = msgspec.field(default=Listener(address="unix:./guest.sock"), name="guest-api")

    @classmethod
    def of_directory(cls, directory: Path) -> "SimulatorConfig":
        """Read the directory's own file, where it has one. Raises what `load` does."""
        path = directory / CONFIG_FILE
        return cls.load(path if path.exists() else None)
