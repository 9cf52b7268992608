"""A simulated guest's TCP ports, on the loopback interface."""

import errno
import socket
from typing import Final

from enclave.log import log_event
from shared.errors import UnavailableError

LOOPBACK: Final = "127.0.0.1"


class LoopbackPorts:
    """Ports that are mapped to free ones of the loopback interface.

    A port keeps its mapping for the life of the guest, and each is told by an event `guest.listening`. A
    guest with an `address` of its own, one of 127.0.0.0/8, has its ports there under their own numbers.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._ports: dict[int, socket.socket] = {}

    def close(self) -> None:
        """Give the ports back."""
        for kept in self._ports.values():
            kept.close()

    def listen(self, port: int) -> socket.socket:
        """Listen on the loopback port that stands for the guest's `port`.

        Raises `UnavailableError("tee.listen")` for a port of the guest's own address that is taken.
        """
        if self._address:
            return self._listen_at_own(port)
        if port not in self._ports:
            # never listens: it keeps the number while the guest closes its listener and opens another
            self._ports[port] = _bound(0)
        return _listening(_bound(self._ports[port].getsockname()[1]), port)

    def _listen_at_own(self, port: int) -> socket.socket:
        try:
            return _listening(_bound(port, self._address), port)
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise UnavailableError("tee.listen", f"port {port} of {self._address} {reason}") from error


def _listening(bound: socket.socket, port: int) -> socket.socket:
    bound.listen(socket.SOMAXCONN)
    log_event("guest.listening", port=port, address="{}:{}".format(*bound.getsockname()))
    return bound


def _bound(port: int, address: str = LOOPBACK) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
    except BaseException:
        bound.close()
        raise
    return bound
