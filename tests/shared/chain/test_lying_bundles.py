"""Bundles from a function that lies: every one is refused with its own code (DESIGN section 2)."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cli.devchain.launcher import Chain
from shared.chain.bundle import MAX_BUNDLE_BYTES, MAX_NODES, MAX_PACKED, ProofBundle, bundle_from_wire
from shared.chain.code import CodeList, code_list
from shared.chain.header import BlockRef, Header, parse_header
from shared.chain.known_builds import KNOWN_BUILDS
from shared.chain.slots import ERC1967_IMPLEMENTATION
from shared.errors import InvalidEvidence
from shared.keccak import keccak256
from tests.shared.chain.world import COMPOSE, Evidence, World

# creation code that deploys five bytes: STOP, and four more
_TINY = "0x6400112233446000526005601bf3"


def refusal(world: World, evidence: Evidence, **changes: Any) -> str:
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", world.boot(), evidence, **changes)
    return caught.value.code


def changed(evidence: Evidence, **changes: Any) -> Evidence:
    return msgspec.structs.replace(evidence, bundle=msgspec.structs.replace(evidence.bundle, **changes))


def test_n57_every_flipped_byte_of_a_bundle_is_refused(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    accepted = []
    for part in ("headers", "nodes", "codes"):
        pieces: tuple[bytes, ...] = getattr(evidence.bundle, part)
        for index, piece in enumerate(pieces):
            # a code has one hash over all its bytes: every 97th stands for the rest
            for at in range(0, len(piece), 97 if part == "codes" else 1):
                spoilt = bytearray(piece)
                spoilt[at] ^= 0x01
                lie = changed(evidence, **{part: (*pieces[:index], bytes(spoilt), *pieces[index + 1 :])})
                try:
                    world.decide("app", world.boot(), lie)
                except InvalidEvidence:
                    continue
                accepted.append((part, index, at))
    assert accepted == []


def test_refuses_another_contracts_proof_of_the_same_blocks(mining_chain: Chain, world: World) -> None:
    other = World(mining_chain)
    lie = other.evidence("app", other.boot())
    assert refusal(world, lie, finalized=lie.finalized, head=lie.head) == "proof.node.missing"


def test_refuses_proof_of_another_app(own_world: World) -> None:
    other_app = own_world.owner.deploy_app(compose_hash=COMPOSE)
    own_world.finalize()
    lie = own_world.evidence("app", own_world.boot(app_id=other_app))
    assert refusal(own_world, lie) == "proof.node.missing"


@pytest.mark.parametrize("part", ["nodes", "codes", "headers"])
def test_refuses_a_bundle_that_lacks_any_piece(world: World, part: str) -> None:
    evidence = world.evidence("app", world.boot())
    pieces = getattr(evidence.bundle, part)
    codes = {
        refusal(world, changed(evidence, **{part: pieces[:index] + pieces[index + 1 :]}))
        for index in range(len(pieces))
    }
    expected = {
        "nodes": "proof.node.missing",
        "codes": "proof.code.missing",
        "headers": "proof.header.mismatch",
    }
    assert codes == {expected[part]}


@pytest.mark.parametrize("part", ["nodes", "codes"])
def test_refuses_junk_beside_the_proof(world: World, part: str) -> None:
    evidence = world.evidence("app", world.boot())
    junk = b"\xc8\x83dog\x83cat"
    lie = changed(evidence, **{part: (*getattr(evidence.bundle, part), junk)})
    assert refusal(world, lie) == "proof.bundle.unused"


def test_refuses_a_third_header(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    lie = changed(evidence, headers=(*evidence.bundle.headers, evidence.bundle.headers[0]))
    assert refusal(world, lie) == "proof.bundle.size"


@pytest.mark.parametrize(
    ("part", "code"), [("nodes", "proof.node.duplicate"), ("codes", "proof.bundle.duplicate")]
)
def test_refuses_a_piece_given_twice(world: World, part: str, code: str) -> None:
    evidence = world.evidence("app", world.boot())
    pieces = getattr(evidence.bundle, part)
    assert refusal(world, changed(evidence, **{part: (*pieces, pieces[0])})) == code


@pytest.mark.parametrize(
    "oversize",
    [
        {"nodes": tuple(bytes([index // 256, index % 256]) for index in range(513))},
        {"codes": (b"\0" * 24_578,)},
        {"codes": tuple(bytes([index]) for index in range(5))},
        {"nodes": tuple(bytes([index]) * 532 for index in range(256)), "codes": ()},
    ],
)
def test_n03_refuses_an_oversize_bundle(world: World, oversize: dict[str, tuple[bytes, ...]]) -> None:
    assert refusal(world, changed(world.evidence("app", world.boot()), **oversize)) == "proof.bundle.size"


@pytest.mark.parametrize("node", [b"", b"\xc0" * 533])
def test_n03_refuses_a_node_of_impossible_size(world: World, node: bytes) -> None:
    evidence = world.evidence("app", world.boot())
    assert refusal(world, changed(evidence, nodes=(*evidence.bundle.nodes, node))) == "proof.node.size"


def test_refuses_an_oversize_header(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    assert refusal(world, changed(evidence, headers=(b"\xf8" * 2049,))) == "proof.header.invalid"


def test_refuses_a_kms_contract_of_unknown_code(world: World) -> None:
    without = CodeList(build for build in KNOWN_BUILDS if build.contract != "DstackKms")
    evidence = world.evidence("app", world.boot())
    assert refusal(world, evidence, chain=world.policy(codes=without)) == "proof.code.unknown"


def test_refuses_a_kms_contract_behind_an_unknown_proxy(world: World) -> None:
    without = CodeList(build for build in KNOWN_BUILDS if build.contract != "ERC1967Proxy")
    evidence = world.evidence("app", world.boot())
    assert refusal(world, evidence, chain=world.policy(codes=without)) == "proof.code.unknown"


def test_refuses_an_app_contract_of_unknown_code(world: World) -> None:
    without = CodeList(build for build in KNOWN_BUILDS if build.contract != "DstackApp")
    evidence = world.evidence("app", world.boot())
    assert refusal(world, evidence, chain=world.policy(codes=without)) == "proof.app.custom"


def register(world: World, address: bytes) -> None:
    world.owner.settle(world.owner.send(world.owner.kms.functions.registerApp(address)))
    world.finalize()


def custom_refusal(world: World, address: bytes) -> str:
    register(world, address)
    boot_info = world.boot(app_id=address)
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", boot_info)
    return caught.value.code


def test_refuses_a_custom_app_contract(own_world: World) -> None:
    tiny = own_world.owner.web3.eth.contract(abi=[], bytecode=_TINY).constructor()
    receipt = own_world.owner.settle(own_world.owner.send(tiny))[0]
    assert custom_refusal(own_world, bytes.fromhex(receipt["contractAddress"][2:])) == "proof.app.custom"


def test_refuses_an_app_that_is_a_known_proxy_of_custom_code(own_world: World) -> None:
    tiny = own_world.owner.web3.eth.contract(abi=[], bytecode=_TINY).constructor()
    receipt = own_world.owner.settle(own_world.owner.send(tiny))[0]
    implementation = bytes.fromhex(receipt["contractAddress"][2:])
    proxy = own_world.owner.constructor("ERC1967Proxy", implementation, b"")
    receipt = own_world.owner.settle(own_world.owner.send(proxy))[0]
    assert custom_refusal(own_world, bytes.fromhex(receipt["contractAddress"][2:])) == "proof.app.custom"


@pytest.mark.parametrize("word", [b"\x77" * 20, b"\x01" * 32], ids=["no code there", "no address"])
def test_refuses_an_app_that_points_its_proxy_slot_at_nothing(own_world: World, word: bytes) -> None:
    """Creation code that stores the word in the ERC-1967 slot and deploys one byte."""
    code = b"\x7f" + word.rjust(32, b"\0") + b"\x7f" + ERC1967_IMPLEMENTATION + b"\x55"
    code += bytes.fromhex("60016000f3")
    maker = own_world.owner.web3.eth.contract(abi=[], bytecode="0x" + code.hex()).constructor()
    receipt = own_world.owner.settle(own_world.owner.send(maker))[0]
    assert custom_refusal(own_world, bytes.fromhex(receipt["contractAddress"][2:])) == "proof.app.custom"


def test_refuses_an_app_that_is_the_bare_implementation(own_world: World) -> None:
    assert custom_refusal(own_world, own_world.app_implementation) == "proof.app.custom"


def test_refuses_an_app_that_is_the_kms_contract_itself(own_world: World) -> None:
    assert custom_refusal(own_world, own_world.kms) == "proof.app.custom"


def test_denies_a_custom_app_that_is_not_registered_without_looking_at_its_code(own_world: World) -> None:
    boot_info = own_world.boot(app_id=own_world.app_implementation)
    assert own_world.decide("app", boot_info).reason == "App not registered"


def test_refuses_a_kms_address_without_a_contract(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    lie = msgspec.structs.replace(world.policy(), kms_contract=b"\x01" * 20)
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", world.boot(), evidence, chain=lie)
    assert caught.value.code in {"proof.node.missing", "proof.kms.absent"}


def test_refuses_a_header_swapped_for_one_with_another_state(world: World) -> None:
    """The same number and time, another state root: only the hash tells, and the quorum named the hash."""
    evidence = world.evidence("app", world.boot())
    header = next(raw for raw in evidence.bundle.headers if keccak256(raw) == evidence.head.hash)
    root = parse_header(header).state_root
    swapped = header.replace(root, keccak256(root))
    headers = tuple(swapped if raw == header else raw for raw in evidence.bundle.headers)
    assert refusal(world, changed(evidence, headers=headers)) == "proof.header.mismatch"


def test_refuses_nodes_of_another_block(own_world: World) -> None:
    old = own_world.evidence("app", own_world.boot())
    own_world.owner.settle(own_world.owner.remove_compose_hash(own_world.app_id, COMPOSE))
    own_world.finalize()
    new = own_world.evidence("app", own_world.boot())
    assert refusal(own_world, changed(new, nodes=old.bundle.nodes)) == "proof.node.missing"


def test_views_are_not_interchangeable(own_world: World) -> None:
    """A bundle that proves the finalised block twice does not pass for the head."""
    own_world.owner.settle(own_world.owner.remove_compose_hash(own_world.app_id, COMPOSE))
    finalized, head = own_world.blocks()
    lie = own_world.evidence("app", own_world.boot(), blocks=(finalized, finalized))
    assert refusal(own_world, lie, head=head) == "proof.header.mismatch"


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        "0x00",
        {"headers": [], "nodes": []},
        {"headers": [], "nodes": [], "codes": [], "finalized": "0x00"},
        {"headers": [], "nodes": "0x00", "codes": []},
        {"headers": [1], "nodes": [], "codes": []},
        {"headers": ["0x0"], "nodes": [], "codes": []},
        {"headers": ["0xzz"], "nodes": [], "codes": []},
        {"headers": ["0x 0"], "nodes": [], "codes": []},
    ],
)
def test_n05_refuses_malformed_json_bundles(wire: object) -> None:
    _refused_as_malformed(wire)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x80",
        msgspec.msgpack.encode([[], [], []]),
        msgspec.msgpack.encode({"headers": [], "nodes": []}),
        msgspec.msgpack.encode({"headers": [], "nodes": [], "codes": [], "finalized": b""}),
        msgspec.msgpack.encode({"headers": [], "nodes": b"", "codes": []}),
        msgspec.msgpack.encode({"headers": [], "nodes": ["00"], "codes": []}),
        msgspec.msgpack.encode({"headers": [], "nodes": [], "codes": []}) + b"\0",
        b"\x91" * 1500,  # lists in lists
        b"\x83\xa7headers\xdd\xff\xff\xff\xff",  # four billion headers, of which there is none
    ],
)
def test_n05_refuses_malformed_packed_bundles(packed: bytes) -> None:
    _refused_as_malformed(b64encode(packed).decode())


@pytest.mark.parametrize("text", ["", "0x00", "AA=A", "gKCA\n", "AAA\ud800", "\u00e9AAA"])
def test_n05_refuses_packed_bundles_that_are_no_base64(text: str) -> None:
    _refused_as_malformed(text)


def _refused_as_malformed(wire: object) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        bundle_from_wire(wire)
    assert caught.value.code == "proof.bundle.malformed"


def test_n03_refuses_an_oversize_json_bundle_before_decoding_it() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        bundle_from_wire({"headers": ["zz" * (MAX_BUNDLE_BYTES + 1)], "nodes": [], "codes": []})
    assert caught.value.code == "proof.bundle.size"


def test_n03_refuses_an_oversize_packed_bundle_before_decoding_it() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        bundle_from_wire("!" * (MAX_PACKED + 1))
    assert caught.value.code == "proof.bundle.size"


def test_a_packed_bundle_of_the_largest_size_is_read() -> None:
    nodes = tuple(bytes([index % 256]) * (MAX_BUNDLE_BYTES // MAX_NODES) for index in range(MAX_NODES))
    bundle = ProofBundle((), nodes, ())
    assert bundle_from_wire(bundle.to_packed()) == bundle


def test_bundle_survives_json(world: World) -> None:
    bundle = world.evidence("app", world.boot()).bundle
    assert bundle_from_wire(msgspec.json.decode(msgspec.json.encode(bundle.to_packed()))) == bundle
    assert bundle_from_wire(msgspec.json.decode(msgspec.json.encode(bundle.to_wire()))) == bundle


@pytest.mark.parametrize(
    "spoil",
    [
        lambda code, offset: code[: offset + 31] + bytes([code[offset + 31] ^ 1]) + code[offset + 32 :],
        lambda code, offset: code[:offset] + b"\x01" + code[offset + 1 :],
        lambda code, offset: code[:offset] + bytes(32) + code[offset + 32 :],
        lambda code, offset: code[: offset - 1] + bytes([code[offset - 1] ^ 1]) + code[offset:],
        lambda code, _offset: code + b"\0",
        lambda code, _offset: code[:-1],
    ],
)
def test_refuses_known_code_with_another_address_or_another_byte(
    world: World, spoil: Callable[[bytes, int], bytes]
) -> None:
    codes = code_list()
    build = next(
        build for build in KNOWN_BUILDS if (build.contract, build.build) == ("DstackApp", "dstack-cloud")
    )
    code = next(
        code for code in world.evidence("app", world.boot()).bundle.codes if len(code) == build.length
    )
    assert codes.is_implementation("DstackApp", code, world.app_implementation)
    spoilt = spoil(code, build.immutable_offsets[0])
    assert not codes.is_implementation("DstackApp", spoilt, world.app_implementation)


def test_refuses_known_code_at_another_address(world: World) -> None:
    code = max(world.evidence("app", world.boot()).bundle.codes, key=len)
    assert code_list().is_implementation("DstackKms", code, world.kms_implementation)
    assert not code_list().is_implementation("DstackKms", code, world.app_implementation)


def test_one_contracts_code_does_not_pass_for_the_other(world: World) -> None:
    code = max(world.evidence("app", world.boot()).bundle.codes, key=len)
    assert not code_list().is_implementation("DstackApp", code, world.kms_implementation)


@pytest.mark.parametrize(
    ("part", "junk", "code"),
    [
        ("headers", (b"", b"\0", b"\xff" * 9, b"\xf8\xff", bytes(532)), "proof.rlp.invalid"),
        ("headers", (b"\xc0",), "proof.header.invalid"),
        ("nodes", (b"",), "proof.node.size"),
        ("nodes", (b"\0", b"\xc0", b"\xff" * 9, b"\xf8\xff", bytes(532)), "proof.node.missing"),
        ("codes", (b"", b"\0", b"\xc0", b"\xff" * 9, b"\xf8\xff", bytes(532)), "proof.code.missing"),
    ],
)
def test_refuses_garbage_in_place_of_a_part(
    world: World, part: str, junk: tuple[bytes, ...], code: str
) -> None:
    evidence = world.evidence("app", world.boot())
    assert {refusal(world, changed(evidence, **{part: (piece,)})) for piece in junk} == {code}


def test_header_names_itself(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    headers: list[Header] = [parse_header(raw) for raw in evidence.bundle.headers]
    assert {BlockRef(header.number, header.hash) for header in headers} == {evidence.finalized, evidence.head}
