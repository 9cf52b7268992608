"""What a guest records of itself is in upstream's order and bytes (spec attestation 3.4, 3.5)."""

from enclave.tee.boot_events import identity_events, make_instance_id, provider_events
from shared.attestation.event_log import replay

AT_BOUNDARY = "7fe1b361f417bb100d717a6b75c99e079eb58976a6322414224f75d903de0c1d"
AT_END = "fbf34f914d21a175e263e50f3b2a402256f4d53e17168b021ba52b548c1094b9"

IDENTITY = identity_events(app_id=b"\x11" * 20, compose_hash=b"\x22" * 32, instance_id=b"\x33" * 20)


def test_the_whole_boot_replays_as_published() -> None:
    events = (*IDENTITY, *provider_events("none", storage_fs="zfs"))
    assert replay(events, "sha384").hex().startswith("c0b5f2e230f7c59b03b7d0772fd15864d66e7a05")
    assert replay(events, "sha256").hex() == AT_END


def test_the_identity_ends_with_the_boundary() -> None:
    assert replay(IDENTITY, "sha256").hex() == AT_BOUNDARY
    whole = (*IDENTITY, *provider_events("tpm"))
    assert replay(whole, "sha256", boot_time=True).hex() == AT_BOUNDARY


def test_keys_of_a_kms_name_its_root_and_the_image_that_it_saw() -> None:
    events = provider_events("kms", provider_id=b"\xab", os_image_hash=bytes(32))
    assert [event.event for event in events] == [
        "os-image-hash",
        "key-provider",
        "storage-fs",
        "system-ready",
    ]
    assert events[0].payload == bytes(32)
    assert events[1].payload == b'{"name":"kms","id":"ab"}'


def test_an_instance_id_is_as_published() -> None:
    binding = bytes.fromhex("b4e86fc384cf93e3c1182ecf5f7eaa71d34cce4c75a7c4c70e316355cdb5f307")
    made = make_instance_id(b"\x33" * 20, b"\x22" * 20, binding)
    assert made.hex() == "a89540a9fc1a5cef11f7ff0bfeb60695f1534741"
