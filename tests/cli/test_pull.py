"""`dstack-cloud pull` from a server that may serve anything."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import cli
from cli.pull import _in_time, source_of
from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError, UnavailableError
from tests.fakes.file_server import FileServer, archive
from tests.functions.plan.projects import write_os_image
from tests.shared.refusal import refuses


@pytest.fixture
def server() -> Iterator[FileServer]:
    made = FileServer()
    yield made
    made.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"image_search_paths": [str(tmp_path / "images")]}))
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(config))
    return tmp_path


@pytest.fixture
def image(tmp_path: Path) -> tuple[bytes, str]:
    digest = write_os_image(tmp_path / "source")
    return archive(tmp_path / "source" / "dstack-0.6.0", "dstack-0.6.0/"), digest.hex()


def pull(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["pull", *arguments])
    if isinstance(result.exception, DstackError):
        raise result.exception
    return result


def test_pulls_an_image_and_prints_its_hash(
    place: Path, server: FileServer, image: tuple[bytes, str]
) -> None:
    server.answers["/dstack-0.6.0-uki.tar.gz"] = image[0]
    result = pull(f"{server.url}/dstack-0.6.0-uki.tar.gz")
    assert result.exit_code == 0
    assert image[1] in result.stdout
    assert (place / "images" / "dstack-0.6.0" / "digest.txt").read_text().strip() == image[1]
    assert [path.name for path in (place / "images").iterdir()] == ["dstack-0.6.0"]


def test_an_archive_without_a_directory_is_taken_too(place: Path, server: FileServer, tmp_path: Path) -> None:
    write_os_image(tmp_path / "source")
    server.answers["/dstack-0.6.0.tar.gz"] = archive(tmp_path / "source" / "dstack-0.6.0", "./")
    assert pull(f"{server.url}/dstack-0.6.0.tar.gz").exit_code == 0
    assert (place / "images" / "dstack-0.6.0" / "sha256sum.txt").exists()


def test_follows_where_it_has_moved_to(place: Path, server: FileServer, image: tuple[bytes, str]) -> None:
    server.answers |= {"/dstack-0.6.0.tar.gz": "/elsewhere", "/elsewhere": image[0]}
    assert pull(f"{server.url}/dstack-0.6.0.tar.gz").exit_code == 0
    assert (place / "images" / "dstack-0.6.0").is_dir()


def test_an_endless_redirect_ends(place: Path, server: FileServer) -> None:
    server.answers["/dstack-0.6.0.tar.gz"] = "/dstack-0.6.0.tar.gz"
    with refuses("pull.redirects", ProtocolError):
        pull(f"{server.url}/dstack-0.6.0.tar.gz")
    assert list((place / "images").iterdir()) == []


def test_a_status_is_told(place: Path, server: FileServer) -> None:
    with refuses("pull.status", UnavailableError):
        pull(f"{server.url}/dstack-0.6.0.tar.gz")
    assert list((place / "images").iterdir()) == []


def test_n19_an_image_of_another_hash_is_refused(
    place: Path, server: FileServer, image: tuple[bytes, str]
) -> None:
    server.answers["/dstack-0.6.0.tar.gz"] = image[0]
    with refuses("pull.hash", ProtocolError):
        pull(f"{server.url}/dstack-0.6.0.tar.gz", "--hash", "00" * 32)
    assert list((place / "images").iterdir()) == []


def test_an_image_of_the_expected_hash_is_taken(
    place: Path, server: FileServer, image: tuple[bytes, str]
) -> None:
    server.answers["/dstack-0.6.0.tar.gz"] = image[0]
    assert pull(f"{server.url}/dstack-0.6.0.tar.gz", "--hash", image[1]).exit_code == 0
    assert (place / "images" / "dstack-0.6.0").is_dir()


def test_files_that_disagree_are_refused(place: Path, server: FileServer, tmp_path: Path) -> None:
    write_os_image(tmp_path / "source")
    source = tmp_path / "source" / "dstack-0.6.0"
    (source / "measurement.gcp.cbor").write_bytes(b"another")
    server.answers["/dstack-0.6.0.tar.gz"] = archive(source, "dstack-0.6.0/")
    with refuses("os_image.file", InvalidEvidence):
        pull(f"{server.url}/dstack-0.6.0.tar.gz")
    assert list((place / "images").iterdir()) == []


def test_what_is_no_archive_is_refused(place: Path, server: FileServer) -> None:
    server.answers["/dstack-0.6.0.tar.gz"] = b"no archive"
    with refuses("os_image.archive", ProtocolError):
        pull(f"{server.url}/dstack-0.6.0.tar.gz")
    assert list((place / "images").iterdir()) == []


def test_an_image_that_is_here_is_kept(place: Path, server: FileServer) -> None:
    (place / "images" / "dstack-0.6.0").mkdir(parents=True)
    with refuses("pull.exists", ConfigError):
        pull(f"{server.url}/dstack-0.6.0.tar.gz")


def test_an_image_is_replaced_when_told_to(place: Path, server: FileServer, image: tuple[bytes, str]) -> None:
    (place / "images" / "dstack-0.6.0").mkdir(parents=True)
    server.answers["/dstack-0.6.0.tar.gz"] = image[0]
    assert pull(f"{server.url}/dstack-0.6.0.tar.gz", "--yes").exit_code == 0
    assert (place / "images" / "dstack-0.6.0" / "digest.txt").exists()


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (
            "dstack-0.6.0",
            "https://github.com/Dstack-TEE/dstack/releases/download/guest-os-v0.6.0/dstack-0.6.0-uki.tar.gz",
        ),
        (
            "dstack-n-0.6.1",
            "https://github.com/Dstack-TEE/dstack/releases/download/guest-os-v0.6.1/dstack-n-0.6.1-uki.tar.gz",
        ),
        (
            "dstack-0.5.4",
            "https://github.com/Dstack-TEE/meta-dstack/releases/download/v0.5.4/dstack-0.5.4-uki.tar.gz",
        ),
    ],
)
def test_a_name_is_looked_for_where_it_was_released(name: str, url: str) -> None:
    assert source_of(name) == (name, url)


@pytest.mark.parametrize("name", ["dstack", "dstack-1.2", "../dstack-0.6.0", "a/b-0.6.0", ""])
def test_what_names_no_release_is_refused(name: str) -> None:
    with refuses("pull.name", ConfigError):
        source_of(name)


def test_a_machine_without_an_image_directory_is_told(place: Path) -> None:
    (place / "config.json").write_text(json.dumps({"image_search_paths": []}))
    with refuses("pull.search_path", ConfigError):
        pull("dstack-0.6.0")


def test_unpacking_ends_with_the_time_for_it(
    place: Path, server: FileServer, image: tuple[bytes, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/dstack-0.6.0.tar.gz"] = image[0]
    monkeypatch.setattr("cli.pull._in_time", lambda made=_in_time: _past(made, monkeypatch))
    with refuses("pull.timeout", UnavailableError):
        pull(f"{server.url}/dstack-0.6.0.tar.gz")
    assert not (place / "images" / "dstack-0.6.0").exists()


def _past(made: Callable[[], Callable[[], None]], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return the check of a limit that is over."""
    with monkeypatch.context() as over:
        over.setattr("cli.pull.TIMEOUT", -1)
        return made()
