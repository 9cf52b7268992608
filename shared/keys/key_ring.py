"""What keeps an app from using one secret on two curves (SECURITY N-61)."""

from collections.abc import Callable

from shared.errors import ConfigError
from shared.keys.guest_keys import ED25519, SECP256K1, GuestKey

FetchKey = Callable[[str, str, str], GuestKey]
"""Gets a key by path, purpose and algorithm: `AppKey.derive`, or a call to an agent's GetKey."""


class KeyRing:
    """Gets keys for an app, and remembers for which algorithm a path was used.

    GetKey of v0 gives the same 32 bytes to every algorithm, which upstream's agents do and running apps rely
    on. A secret used on two curves falls with the weaker use of the two, so that a path is for one algorithm
    here, unless a caller says that it must be the same. It sees its own process alone: paths that name their
    algorithm keep processes apart too.
    """

    def __init__(self, fetch: FetchKey) -> None:
        self._fetch = fetch
        self._algorithms: dict[str, str] = {}

    def get_key(
        self,
        path: str,
        purpose: str = "",
        algorithm: str = SECP256K1,
        *,
        allow_shared_path: bool = False,
    ) -> GuestKey:
        """Return the key of a path. Raises `ConfigError("key_ring.shared_path")`, and what fetching does."""
        curve = ED25519 if algorithm == ED25519 else SECP256K1
        used = self._algorithms.setdefault(path, curve)
        if used != curve and not allow_shared_path:
            raise ConfigError(
                "key_ring.shared_path",
                f"path {path!r} is used for {used}, and {curve} would get the same secret: take another path",
            )
        return self._fetch(path, purpose, algorithm)
