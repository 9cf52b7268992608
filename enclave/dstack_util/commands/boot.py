"""`setup`, `host-shared` and `notify-host`."""

import argparse
import os
from pathlib import Path
from typing import Any

from enclave.devices.host_shared import DIRECTORY_VARIABLE
from enclave.dstack_util.data_device import choose_device
from enclave.dstack_util.host_share import DEFAULT_MOUNT, DIRECTORY, mount_share, unmount_share
from enclave.dstack_util.setup import Places, setup
from enclave.dstack_util.tools import Tools

WORK = Path("/var/volatile/dstack")


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the group's subcommands."""
    one = commands.add_parser("setup", help="boot this guest: keys, disk, environment")
    one.add_argument("--work-dir", type=Path, default=WORK, help=f"in memory; default {WORK}")
    one.add_argument("--device", type=Path, help="the data disk; chosen as the image does without it")
    one.add_argument("--mount-point", type=Path, help="default WORK_DIR/persistent")
    one.set_defaults(run=_setup)

    shared = commands.add_parser("host-shared", help="mount the host's share, or unmount it")
    shared.add_argument("action", choices=("mount", "unmount"))
    shared.add_argument("--mount-point", type=Path, default=Path(DEFAULT_MOUNT))
    shared.set_defaults(run=_host_shared)

    notify = commands.add_parser("notify-host", help="tell the host an event; on clouds nobody is told")
    notify.add_argument("-u", "--url", default="", help="where the host is; default what its files say")
    notify.add_argument("-e", "--event", required=True)
    notify.add_argument("-d", "--data", "--payload", required=True)
    notify.set_defaults(run=_notify_host)


def _setup(arguments: argparse.Namespace, tools: Tools) -> None:
    machine, work = tools.machine, arguments.work_dir.absolute()
    # before the guest is looked for: it reads the copies from there
    os.environ[DIRECTORY_VARIABLE] = str(work / DIRECTORY)
    setup(
        tools.platform,
        machine,
        Places(
            work=work,
            device=arguments.device or choose_device(machine, os.environ),
            mount_point=arguments.mount_point or work / "persistent",
            share=Path(DEFAULT_MOUNT),
        ),
    )


def _host_shared(arguments: argparse.Namespace, tools: Tools) -> None:
    if arguments.action == "mount":
        mount_share(tools.machine, arguments.mount_point)
    else:
        unmount_share(tools.machine, arguments.mount_point)


def _notify_host(arguments: argparse.Namespace, tools: Tools) -> None:
    host = tools.host_api(arguments.url)
    if host is not None:
        host.notify(arguments.event, arguments.data)
