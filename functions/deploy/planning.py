"""From the files of a deployment to its plan: the same planner as `dstack-cloud plan`, on stored bytes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from functions.deploy.record import Deployment
from functions.deploy.request import materialise
from functions.deploy.steps import BuiltPlan
from functions.deploy.work import LeasedWork
from functions.plan.assembly import Asked, ImageFacts, ask_again, make_plan
from functions.plan.enclave_builder import CachedBuilder
from functions.plan.enclave_image import EnclaveBuilder
from functions.plan.project_files import APP_JSON, read_file, read_project
from functions.plan.service import PlanOptions, gather_facts
from functions.plan.standing import Standing
from shared.boot_info import BootInfo
from shared.chain.approval import ChainViews
from shared.compose.project import (
    GlobalConfig,
    NitroConfig,
    nitro_settings,
    read_app_json,
    with_defaults,
)
from shared.compose.services import read_compose_file
from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex_setting
from shared.measurement.config_disk import MAX_BYTES
from shared.measurement.image_reference import parse_reference, pinned_digest
from shared.net.dialer import Dialer, DirectDialer
from shared.net.public_dialer import PublicDialer
from shared.net.registry import RegistryClient

OS_IMAGE: Final = "os-image/"
"""Where a project that is handed in carries its OS image's small files: those that say what it measures."""

MAX_FILE: Final = max(MAX_BYTES.values())
"""No file of a project is larger than the largest that a guest takes."""


class ChainSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which contracts govern what is deployed here; `ask` is None where no chain is configured.

    It takes the time in unix seconds: what is known of the chain must not be old.
    """

    ask: Callable[[BootInfo, int], ChainViews] | None = None
    kms_contract: bytes | None = None


class Planner:
    """Plans and builds. `cache` is a directory for built images, `workspace` one for a project's files.

    With `local` a project may lie on this machine (`settings["directory"]`), name images by their paths and
    have docker build one; elsewhere it has what was handed in, and nothing else. What it names is fetched
    from the public internet alone there, and from hosts that the operator listed (`internal`). The OS images
    of `config` count beside those that a project brings.
    """

    def __init__(
        self,
        config: GlobalConfig,
        cache: Path,
        chain: ChainSettings,
        *,
        workspace: Path | None = None,
        internal: Collection[str] = frozenset(),
        local: bool = False,
    ) -> None:
        self._config = config
        self._cache = cache
        self._chain = chain
        self._workspace = workspace
        direct = DirectDialer()
        self._dialer: Dialer = direct if local else PublicDialer(direct, internal=internal)
        self._local = local

    def build(self, work: LeasedWork) -> BuiltPlan:
        """Plan the project of the record, and build its enclave image where it has one.

        Raises `ConfigError`: `deploy.project.changed`, `deploy.project.build` (a service that docker would
        have to build here); what `gather_facts` and `make_plan` raise, and the blob store.
        """
        with TemporaryDirectory(dir=self._workspace) as temporary:
            directory, config = self._project(work, Path(temporary))
            output = Path(temporary) / "image.eif"
            builder: EnclaveBuilder = CachedBuilder(
                self._cache,
                partial(RegistryClient, dialer=self._dialer),
                dialer=self._dialer,
                output=output,
            )
            if directory.is_relative_to(temporary):
                _check_no_build(directory, config)
                builder = _from_registry(builder)
            facts = gather_facts(directory, config, _options(work.deployment), build_enclave=builder)
            plan = make_plan(facts, None)
            image = work.blobs.put_file(output) if output.exists() and plan.outcome != "refused" else ""
        return BuiltPlan(
            plan=plan, config=facts.config_files or {}, image=image, image_source=facts.image.source
        )

    def ask_approval(self, work: LeasedWork) -> Standing:
        """Ask the chain what is missing for the record's plan. Raises what the chain raises."""
        options = _options(work.deployment)
        asked = Asked(options.device_id, options.app_owner, self._chain.kms_contract)
        ask = self._chain.ask
        return ask_again(work.plan, asked, None if ask is None else partial(_at, ask, work.now))

    def _project(self, work: LeasedWork, temporary: Path) -> tuple[Path, GlobalConfig]:
        stored = work.deployment.files.project
        place = work.deployment.settings.get("directory", "")
        if self._local and place:
            directory = Path(place)
            _check_unchanged(directory, stored)
            return directory, self._config
        directory = temporary / "project"
        files = {name: work.blobs.get(digest, MAX_FILE) for name, digest in stored.items()}
        images = {name: files.pop(name) for name in list(files) if name.startswith(OS_IMAGE)}
        materialise(files, directory, work.deployment.settings.get("env_names", ()))
        if not images:
            return directory, self._config
        name = with_defaults(read_app_json(files[APP_JSON])).os_image or ""
        search = temporary / "images"
        if name == Path(name).name and not name.startswith("."):  # else the planner refuses it
            (search / name).mkdir(parents=True)
            for file, content in images.items():
                (search / name / file.removeprefix(OS_IMAGE)).write_bytes(content)
        paths = (str(search), *self._config.image_search_paths)
        return directory, msgspec.structs.replace(self._config, image_search_paths=paths)


def _at(ask: Callable[[BootInfo, int], ChainViews], now: int, boot_info: BootInfo) -> ChainViews:
    return ask(boot_info, now)


def _from_registry(builder: EnclaveBuilder) -> EnclaveBuilder:
    """Let a builder build images of a registry alone: a path would be one of the machine that plans."""

    def build(image: str, settings: NitroConfig, directory: Path) -> ImageFacts:
        reference = parse_reference(image)
        pinned_digest(reference)
        # written out it begins with its host: `name@sha256:...` could be a file where this process runs
        return builder(str(reference), settings, directory)

    return build


def _check_no_build(directory: Path, config: GlobalConfig) -> None:
    """Refuse a service that is built: its file would choose what docker reads and runs on this machine."""
    files = read_project(directory)
    if files.project.platform != "nitro" or nitro_settings(files.project, config).image:
        return
    try:
        services = read_compose_file(files.docker_compose or "").services
    except ProtocolError:
        return  # the planner says what is wrong with it
    if any(service.has_build for service in services):
        raise ConfigError(
            "deploy.project.build",
            "the service is built from a Dockerfile, which a request cannot hand in: push the image to a"
            " registry, and name it by its digest",
        )


def _check_unchanged(directory: Path, stored: Mapping[str, str]) -> None:
    for name, digest in stored.items():
        if (
            not name.startswith(OS_IMAGE)
            and sha256(read_file(directory / name, MAX_FILE)).hexdigest() != digest
        ):
            raise ConfigError(
                "deploy.project.changed",
                f"{name} in {directory} is not what it was when this was asked for: deploy again",
            )


def _options(deployment: Deployment) -> PlanOptions:
    settings = deployment.settings
    return PlanOptions(
        app_id=_hex(settings, "app_id", 20) or b"",
        device_id=_hex(settings, "device_id", 32),
        app_owner=_hex(settings, "app_owner", 20),
        may_drop=_texts(settings.get("may_drop", ())),
    )


def _hex(settings: Mapping[str, object], name: str, length: int) -> bytes | None:
    value = settings.get(name)
    if not value:
        return None
    return decode_hex_setting(str(value), what=name, length=length, code="deploy.request.option")


def _texts(value: object) -> Sequence[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ConfigError("deploy.request.option", "may_drop is no list of field names")
    return value
