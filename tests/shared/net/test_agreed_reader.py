"""What several endpoints agree on in two views: over a development chain, and over nodes that lag and lie."""

from collections.abc import Callable, Sequence

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from shared.chain.approval import ChainViews
from shared.errors import ConfigError, DstackError, InvalidEvidence, UnavailableError
from shared.net.agreed_reader import AgreedReader
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import Call, JsonRpc
from tests.shared.net.test_contract_reader import BOOT, COMPOSE, DEVICE, IMAGE, boot
from tests.shared.refusal import refuses

Twist = Callable[[Call, object], object]


class Site:
    """Contracts of our own, and a chain whose blocks become final when it is told to go on."""

    def __init__(self, chain: Chain) -> None:
        self.governance = Governance(chain.url, chain.accounts[6])
        self.kms = self.governance.deploy().kms
        self.governance.settle(self.governance.add_os_image(IMAGE))
        self.rpc = JsonRpc(chain.url, HttpClient(DirectDialer()))

    def go_on(self, blocks: int = 4) -> None:
        for _ in range(blocks):
            self.rpc.call("evm_mine")

    def app(self) -> bytes:
        return self.governance.deploy_app(device_id=DEVICE, compose_hash=COMPOSE)

    def now(self) -> int:
        return self.governance.web3.eth.get_block("latest")["timestamp"]


class Node:
    """The chain under another host's name, whose answers a test may twist."""

    secure = True

    def __init__(self, host: str, site: Site, twist: Twist = lambda _, answer: answer) -> None:
        self.host = host
        self._site = site
        self._twist = twist
        self.failure: DstackError | None = None

    def batch(self, calls: Sequence[Call]) -> list[object]:
        if self.failure is not None:
            raise self.failure
        answers = self._site.rpc.batch(calls)
        return [self._twist(call, answer) for call, answer in zip(calls, answers, strict=True)]


@pytest.fixture(scope="module")
def site(chain: Chain) -> Site:
    return Site(chain)


def read(site: Site, *nodes: Node, app_id: bytes, chain_id: int | None = 31337, late: int = 0) -> ChainViews:
    reader = AgreedReader(nodes, site.kms, chain_id=chain_id, quorum=len(nodes) // 2 + 1)
    return reader.read(boot(app_id), site.now() + late)


def two(site: Site) -> tuple[Node, Node]:
    return Node("a", site), Node("b", site)


def allow_all(call: Call, answer: object) -> object:
    """Lie about each yes and no of the contracts."""
    is_view = call[0] == "eth_call" and isinstance(answer, str) and answer == f"0x{0:064x}"
    return f"0x{1:064x}" if is_view else answer


def test_a_grant_is_in_one_view_until_it_is_final(site: Site) -> None:
    site.go_on()
    app_id = site.app()
    views = read(site, *two(site), app_id=app_id)
    assert views.head.decision == ""
    assert views.final is not None
    assert not views.final.app_has_code
    site.go_on()
    views = read(site, *two(site), app_id=app_id)
    assert (views.final is not None and views.final.decision, views.head.decision) == ("", "")
    assert views.final_number < views.head.block_number
    assert (views.asked, views.quorum) == (2, 2)


def test_a_revocation_is_in_the_newest_view_at_once(site: Site) -> None:
    app_id = site.app()
    site.go_on()
    site.governance.settle(site.governance.remove_compose_hash(app_id, COMPOSE))
    views = read(site, *two(site), app_id=app_id)
    assert views.head.decision == "Compose hash not allowed"
    assert views.final is not None
    assert views.final.decision == ""


def test_a_contract_that_is_not_final_yet_is_in_no_final_view(site: Site, chain: Chain) -> None:
    kms = Governance(chain.url, chain.accounts[5]).deploy().kms
    views = AgreedReader(two(site), kms, chain_id=None, quorum=2).read(BOOT, site.now())
    assert views.final is None
    assert views.final_time > 0


def test_n57_one_of_two_that_lies_about_the_contract_is_a_disagreement(site: Site) -> None:
    with refuses("quorum.disagreement", UnavailableError):
        read(site, Node("a", site), Node("liar", site, allow_all), app_id=b"\x07" * 20)


def test_n57_one_of_three_that_lies_is_outvoted(site: Site) -> None:
    nodes = (Node("liar", site, allow_all), *two(site))
    assert not read(site, *nodes, app_id=b"\x07" * 20).head.app_registered


def test_a_dead_endpoint_of_two_leaves_too_few(site: Site) -> None:
    dead = Node("dead", site)
    dead.failure = UnavailableError("net.timeout", "gone")
    with refuses("quorum.too_few", UnavailableError):
        read(site, Node("a", site), dead, app_id=b"")


def test_an_endpoint_that_fails_half_way_counts_for_nothing(site: Site) -> None:
    def forgets(call: Call, answer: object) -> object:
        return None if call[0] == "eth_getBlockByHash" else answer

    with refuses("quorum.too_few", UnavailableError):
        read(site, Node("a", site), Node("b", site, forgets), app_id=b"")
    with refuses("rpc.block.unknown", UnavailableError):
        read(site, Node("a", site, forgets), app_id=b"")


def test_what_is_no_answer_of_a_node_may_be_one_later(site: Site) -> None:
    def garbles(call: Call, answer: object) -> object:
        return "0x01" if call[0] == "eth_call" else answer

    with refuses("quorum.too_few", UnavailableError):
        read(site, Node("a", site, garbles), app_id=site.app())


def test_n57_another_block_in_place_of_the_one_that_is_named_counts_for_nothing(site: Site) -> None:
    def swaps(call: Call, answer: object) -> object:
        return (
            {**answer, "hash": f"0x{1:064x}"}
            if call[0] == "eth_getBlockByHash" and isinstance(answer, dict)
            else answer
        )

    with refuses("quorum.too_few", UnavailableError):
        read(site, Node("a", site), Node("liar", site, swaps), app_id=b"")


def test_another_chain_is_the_operators_mistake(site: Site) -> None:
    with refuses("plan.chain_id", ConfigError):
        read(site, *two(site), app_id=b"", chain_id=1)


def test_an_address_without_code_is_the_operators_mistake(site: Site) -> None:
    with refuses("plan.kms_contract", ConfigError):
        AgreedReader(two(site), b"\x09" * 20, chain_id=None, quorum=2).read(BOOT, site.now())


def test_an_old_newest_block_shows_nothing(site: Site) -> None:
    with refuses("quorum.behind", UnavailableError):
        read(site, *two(site), app_id=b"", late=301)


def test_a_development_chain_may_make_no_block_for_long(site: Site) -> None:
    assert read(site, Node("127.0.0.1", site), app_id=b"", late=10**6).asked == 1


def test_a_final_block_that_goes_back_is_refused(site: Site) -> None:
    back = [0]

    def rewinds(call: Call, answer: object) -> object:
        if call[0] == "eth_getBlockByNumber" and call[1][0] == "finalized" and back[0]:
            [block] = site.rpc.batch([("eth_getBlockByNumber", ["0x1", False])])
            return block
        return answer

    site.go_on()
    reader = AgreedReader([Node(host, site, rewinds) for host in "ab"], site.kms, chain_id=None, quorum=2)
    reader.read(BOOT, site.now())
    back[0] = 1
    with refuses("quorum.finalized.regressed", InvalidEvidence):
        reader.read(BOOT, site.now())


@pytest.mark.parametrize(
    ("urls", "quorum", "code"),
    [
        (("https://a.example", "https://a.example"), 2, "quorum.config.hosts"),
        (("https://a.example", "https://b.example"), 1, "quorum.config.size"),
        (("https://a.example", "https://b.example"), 3, "quorum.config.size"),
        (("https://a.example", "http://b.example"), 2, "quorum.config.plain_http"),
    ],
)
def test_endpoints_that_are_no_quorum_are_refused(urls: tuple[str, ...], quorum: int, code: str) -> None:
    http = HttpClient(DirectDialer())
    with refuses(code, ConfigError):
        AgreedReader([JsonRpc(url, http) for url in urls], bytes(20), chain_id=1, quorum=quorum)


def test_one_endpoint_may_stand_alone_and_the_views_say_so(site: Site) -> None:
    views = read(site, Node("a", site), app_id=b"")
    assert (views.asked, views.quorum) == (1, 1)


def test_both_views_are_of_the_chain_alone(site: Site) -> None:
    asked: list[Call] = []

    def record(call: Call, answer: object) -> object:
        asked.append(call)
        return answer

    app_id = site.app()
    site.go_on()
    views = read(site, Node("a", site, record), app_id=app_id)
    assert views.final is not None
    hashes = {f"0x{one.block_hash.hex()}" for one in (views.head, views.final)}
    pinned = [
        params[1]
        for method, params in asked
        if method in {"eth_call", "eth_getCode", "eth_getTransactionCount"}
    ]
    assert {str(at["blockHash"]) for at in pinned if isinstance(at, dict)} == hashes
    assert all(isinstance(at, dict) and at["requireCanonical"] is True for at in pinned)
