"""Clouds as an environment reaches them: the real ones, or stand-ins on this machine that tests start."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from functions.deploy.cloud import Cloud
from functions.google_api.endpoint import gcp_endpoint, google_session
from shared.compose.project import NitroConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from functions.clouds.gcp_compute import Compute
    from functions.google_api.storage import Bucket


class Clouds(Mapping[str, Cloud]):
    """Clouds by name, each made when it is first asked for: importing one takes up to a second."""

    def __init__(self, makers: "Mapping[str, Callable[[], Cloud]]") -> None:
        self._makers = makers
        self._made: dict[str, Cloud] = {}

    def __getitem__(self, name: str) -> Cloud:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers


def google_bucket(environ: Mapping[str, str], name: str) -> "Bucket":
    """Return a bucket of Cloud Storage."""
    from functions.google_api.storage import BASE_URL, Bucket  # noqa: PLC0415 - heavy

    return Bucket(google_session(environ), name, gcp_endpoint(environ) or BASE_URL)


def google_compute(environ: Mapping[str, str]) -> "Compute":
    """Return the Compute API."""
    from functions.clouds.gcp_compute import Compute  # noqa: PLC0415 - heavy
    from functions.google_api.credentials import anonymous_credentials  # noqa: PLC0415 - heavy

    endpoint = gcp_endpoint(environ)
    return Compute(anonymous_credentials, endpoint) if endpoint else Compute()


def nitro_cloud(environ: Mapping[str, str], clock: "Callable[[], int]", defaults: NitroConfig) -> Cloud:
    """Return enclaves on AWS; `defaults` are the operator's, for projects that do not say otherwise.

    The forwarder of their instances is `DSTACK_FORWARDER`, a packed one, or is packed from this installation.
    """
    from functions.clouds.aws_nitro import AwsNitroCloud  # noqa: PLC0415 - heavy
    from functions.clouds.nitro_bundle import make_forwarder, read_forwarder  # noqa: PLC0415 - heavy

    packed = environ.get("DSTACK_FORWARDER", "")
    return AwsNitroCloud(
        lambda: read_forwarder(Path(packed)) if packed else make_forwarder(),
        bucket=environ.get("DSTACK_ARTIFACT_BUCKET", ""),
        defaults=defaults,
        clock=clock,
    )
