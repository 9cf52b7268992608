"""The processes beside the app: the ways in and out, and the agent."""

import asyncio
import signal

from enclave.agent.config import AgentConfig
from enclave.agent.daemon import run
from enclave.agent.serving import raise_open_files
from enclave.dstack_util.enclave_config import EnclaveConfig
from enclave.dstack_util.get_keys import KeyBundle
from enclave.init.settings import Boot
from enclave.init.supervisor import Ready
from enclave.platform import Platform
from enclave.tee.nitro import PARENT_CID, PROXY_PORT, NitroTee
from enclave.vsock.config import ForwarderConfig, TcpToVsock, VsockToTcp
from enclave.vsock.forwarder import Forwarder
from shared.errors import ExitCode

PROXY_RULE = "proxy"


def forwarder_config(boot: Boot, *, any_proxy_port: bool = False) -> ForwarderConfig | None:
    """Return the rules of the enclave's side: loopback to the parent's proxy, vsock ports to the app's.

    None where there are none. `any_proxy_port` takes a free port, where others share the loopback.
    """
    port = 0 if any_proxy_port else boot.proxy_port
    bridge = TcpToVsock(PROXY_RULE, f"127.0.0.1:{port}", f"vsock://{PARENT_CID}:{PROXY_PORT}")
    config = ForwarderConfig(
        bridge=(bridge,) if boot.proxy_port else (),
        ingress=tuple(VsockToTcp(f"port-{one.listen}", one.listen, one.target) for one in boot.ports),
    )
    if not config.bridge and not config.ingress:
        return None
    config.check()
    return config


def run_forwarder(tee: NitroTee, config: ForwarderConfig, ready: Ready) -> int:
    """Run the forwarder until SIGTERM; it is ready with the address of the proxy, or nothing."""

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        forwarder = Forwarder(config, transport=tee.vsock)
        await forwarder.start()
        ready(forwarder.listeners.get(PROXY_RULE, ""))
        await stop.wait()
        await forwarder.stop()

    asyncio.run(run())
    return ExitCode.OK


def run_agent(platform: Platform, config: EnclaveConfig, bundle: KeyBundle, ready: Ready) -> int:
    """Answer the app's SDK and deployers' challenges until SIGTERM, with keys that are in memory alone."""
    raise_open_files()
    stopped = run(platform, AgentConfig.load(None), bundle.to_file(), config, ready=lambda: ready(""))
    return ExitCode.OK if stopped else ExitCode.FAILED
