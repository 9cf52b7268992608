"""Root keys that are taken over from a running KMS at every start, and written nowhere."""

import json
from collections.abc import Callable
from contextlib import suppress

import pytest

from enclave.kms.audit import AuditLog, Case, check_chain
from enclave.kms.custody import Custody
from enclave.kms.custody_config import PeerCustody
from enclave.kms.custody_peer import LONGEST_PAUSE, HeldKeys, Onboard
from enclave.kms.key_store import KeyMaterial, KeyStore
from enclave.kms.onboarding import Onboarder, RootPins
from shared.errors import ConfigError, ExitCode, PolicyDenied, StorageError, UnavailableError
from tests.enclave.conftest import StandInDialer
from tests.enclave.kms.conftest import URL
from tests.shared.refusal import refuses

URLS = ("https://a.test:8000", "https://b.test:8000")


class Clock:
    """Time that passes while somebody waits, or during an attempt."""

    def __init__(self, attempt: float = 0) -> None:
        self.now = 1000.0
        self.attempt = attempt
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Sources:
    """Sources of whose answers a test decides: an error each time, or none."""

    def __init__(self, keys: KeyMaterial, clock: Clock, answers: dict[str, list[Exception | None]]) -> None:
        self.asked: list[tuple[str, str]] = []
        self._keys, self._clock, self._answers = keys, clock, answers

    def onboarding(self, store: Custody) -> Onboard:
        def onboard(url: str, domain: str) -> None:
            self.asked.append((url, domain))
            self._clock.now += self._clock.attempt
            answers = self._answers[url]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is not None:
                raise answer
            store.create(self._keys)

        return onboard


Held = Callable[..., tuple[HeldKeys, Sources]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def held(keys: KeyMaterial, clock: Clock) -> Held:
    """Return a function that gives the custody, and the sources that answer it."""

    def make(
        a: list[Exception | None], b: list[Exception | None], patience: int = 300
    ) -> tuple[HeldKeys, Sources]:
        sources = Sources(keys, clock, dict(zip(URLS, (a, b), strict=True)))
        settings = PeerCustody(source_urls=URLS, domain="peer.test", patience=patience)
        made = HeldKeys(settings, sources.onboarding, wait=clock.wait, clock=lambda: clock.now)
        return made, sources

    return make


DOWN = UnavailableError("net.unreachable", "cannot connect")
DENIED = PolicyDenied("kms.source.refused", "source KMS refused: Boot denied")


def test_the_first_source_is_enough(held: Held, keys: KeyMaterial, clock: Clock) -> None:
    custody, sources = held([None], [None])
    assert not custody.bootstrapped()
    assert custody.load() is keys
    assert custody.bootstrapped()
    assert (sources.asked, clock.waits) == ([(URLS[0], "peer.test")], [])


@pytest.mark.parametrize("error", [DOWN, DENIED])
def test_the_next_source_is_asked_in_the_place_of_one_that_gives_none(
    held: Held, keys: KeyMaterial, clock: Clock, error: Exception
) -> None:
    custody, sources = held([error], [None])
    assert custody.load() is keys
    assert [url for url, _ in sources.asked] == [*URLS]
    assert clock.waits == []


def test_sources_are_asked_again_after_pauses_that_grow(held: Held, keys: KeyMaterial, clock: Clock) -> None:
    custody, sources = held([DOWN], [*[DOWN] * 8, None])
    assert custody.load() is keys
    assert len(sources.asked) == 18
    assert clock.waits == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_stops_when_no_source_gives_keys_in_time(held: Held, clock: Clock) -> None:
    custody, sources = held([DOWN], [DENIED], patience=10)
    with refuses("kms.custody.no_source", UnavailableError) as refusal:
        custody.load()
    assert refusal.value.exit_code == ExitCode.FAILED
    assert refusal.value.message == (
        "no source gave the root keys within 10 s: https://a.test:8000 net.unreachable, "
        "https://b.test:8000 kms.source.refused"
    )
    assert clock.waits == [1, 2, 4, 3]
    assert len(sources.asked) == 10
    assert not custody.bootstrapped()


def test_each_source_that_gives_nothing_is_a_line_of_the_audit_log(
    keys: KeyMaterial, clock: Clock, app_enclave, anchors
) -> None:
    lines: list[str] = []
    judged = PolicyDenied("kms.source.denied", "boot denied")
    with suppress(PolicyDenied), Case("proof", app_enclave.evidence(anchors)):
        raise judged
    sources = Sources(keys, clock, {URLS[0]: [DOWN], URLS[1]: [judged, None]})
    settings = PeerCustody(source_urls=URLS, domain="peer.test")
    audit = AuditLog(lines.append)
    HeldKeys(settings, sources.onboarding, wait=clock.wait, clock=lambda: clock.now, audit=audit).load()
    check_chain(lines)
    told = [json.loads(line) for line in lines]
    assert {entry["event"] for entry in told} == {"kms.custody.source_failed"}
    assert [(entry["source"], entry["code"], entry.get("evidence_verified")) for entry in told] == [
        (URLS[0], "net.unreachable", None),
        (URLS[1], "kms.source.denied", True),
        (URLS[0], "net.unreachable", None),
    ]


def test_asks_every_source_however_long_one_takes(held: Held, clock: Clock, keys: KeyMaterial) -> None:
    clock.attempt = 120
    custody, sources = held([DOWN], [None], patience=60)
    assert custody.load() is keys
    assert [url for url, _ in sources.asked] == [*URLS]


def test_begins_no_further_round_when_the_time_is_up(held: Held, clock: Clock) -> None:
    clock.attempt = 120
    custody, sources = held([DOWN], [DOWN], patience=60)
    with refuses("kms.custody.no_source", UnavailableError):
        custody.load()
    assert len(sources.asked) == 2


def test_what_no_source_can_mend_ends_the_start_at_once(held: Held, clock: Clock) -> None:
    custody, sources = held([ConfigError("kms.onboard.unpinned", "no root keys are named")], [None])
    with refuses("kms.onboard.unpinned", ConfigError):
        custody.load()
    assert (len(sources.asked), clock.waits) == (1, [])


def test_keys_that_came_are_not_replaced(held: Held, keys: KeyMaterial) -> None:
    custody, _ = held([None], [None])
    custody.load()
    with refuses("kms.bootstrapped", StorageError):
        custody.create(keys)


@pytest.mark.parametrize(("url", "domain"), [("http://a.test", "peer.test"), (URLS[0], "-")])
def test_refuses_settings_that_name_nobody(url: str, domain: str) -> None:
    settings = PeerCustody(source_urls=(url,), domain=domain)
    with refuses("config.custody.peer", ConfigError):
        HeldKeys(settings, lambda _store: lambda _url, _domain: None)


@pytest.fixture
def taking(onboarder: Callable[..., Onboarder], running: StandInDialer) -> Callable[..., HeldKeys]:
    """Return a function that gives the custody whose source is a whole running KMS."""
    settings = PeerCustody(source_urls=(URL,), domain="peer.test", patience=0)

    def make(**changes: object) -> HeldKeys:
        return HeldKeys(settings, lambda store: onboarder(running, store=store, **changes).onboard)

    return make


def test_has_the_keys_of_a_running_kms_and_none_on_the_disk(
    taking: Callable[..., HeldKeys], keys: KeyMaterial, new_store: KeyStore
) -> None:
    taken = taking().load()
    assert taken.root_keys() == keys.root_keys()
    assert taken.domain == "peer.test"
    assert not new_store.bootstrapped()


def test_n55_every_check_of_onboarding_is_made(taking: Callable[..., HeldKeys]) -> None:
    other = RootPins(ca_pubkey=bytes(91), k256_pubkey=bytes(33))
    with refuses("kms.custody.no_source", UnavailableError) as refusal:
        taking(pins=other).load()
    assert "kms.onboard.other_keys" in refusal.value.message
    with refuses("kms.onboard.unpinned", ConfigError):
        taking(pins=RootPins()).load()
