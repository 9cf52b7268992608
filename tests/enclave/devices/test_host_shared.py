from pathlib import Path

import pytest

from enclave.devices import host_shared
from enclave.devices.host_shared import MAX_SYS_CONFIG, HostShared
from shared.errors import ConfigError

VM_CONFIG = '{"os_image_hash":"00"}'


def test_returns_the_text_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".sys-config.json").write_text(
        '{"kms_urls":[],"vm_config":"{\\"os_image_hash\\":\\"00\\"}","host_api_url":"x"}'
    )
    assert HostShared(tmp_path).vm_config() == VM_CONFIG


def test_is_empty_without_the_file(tmp_path: Path) -> None:
    assert HostShared(tmp_path).vm_config() == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"vm_config":{}}',
        b'{"vm_config":"\xff"}',
        b'{"vm_config":""}x',
        b'{"other":' + b"[" * 30_000,
    ],
)
def test_refuses_a_file_of_another_shape(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".sys-config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        HostShared(tmp_path).vm_config()
    assert caught.value.code == "sys_config.malformed"


def test_refuses_an_oversize_file(tmp_path: Path) -> None:
    (tmp_path / ".sys-config.json").write_bytes(b'{"vm_config":""}'.ljust(MAX_SYS_CONFIG + 1))
    with pytest.raises(ConfigError) as caught:
        HostShared(tmp_path).vm_config()
    assert caught.value.code == "sys_config.size"


def test_reports_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".sys-config.json").mkdir()
    with pytest.raises(ConfigError) as caught:
        HostShared(tmp_path).vm_config()
    assert caught.value.code == "sys_config.unreadable"


@pytest.mark.parametrize("environment", [{}, {"DSTACK_HOST_SHARED_DIR": ""}])
def test_stands_where_upstream_puts_it(environment: dict[str, str]) -> None:
    assert HostShared.from_environment(environment)._directory == Path("/dstack/.host-shared")


def test_can_stand_elsewhere(tmp_path: Path) -> None:
    (tmp_path / ".sys-config.json").write_text('{"vm_config":"x"}')
    assert HostShared.from_environment({"DSTACK_HOST_SHARED_DIR": str(tmp_path)}).vm_config() == "x"


def test_app_compose_is_read_as_it_is(tmp_path: Path) -> None:
    assert HostShared(tmp_path).app_compose() == b""
    (tmp_path / "app-compose.json").write_bytes(b"{ }\n")
    assert HostShared(tmp_path).app_compose() == b"{ }\n"


def test_refuses_an_app_compose_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_shared, "MAX_COMPOSE_BYTES", 2)
    (tmp_path / "app-compose.json").write_bytes(b"{ }")
    with pytest.raises(ConfigError) as refusal:
        HostShared(tmp_path).app_compose()
    assert refusal.value.code == "app_compose.size"
    (tmp_path / "app-compose.json").unlink()
    (tmp_path / "app-compose.json").mkdir()
    with pytest.raises(ConfigError) as refusal:
        HostShared(tmp_path).app_compose()
    assert refusal.value.code == "app_compose.unreadable"
