"""The prpc encodings, against the traps of spec kms section 1."""

import contextlib
import json

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ProtocolError
from shared.rpc import codec
from shared.rpc.agent_pb2 import AttestResponse, GetQuoteResponse
from shared.rpc.codec import Encoding
from shared.rpc.guest_api_pb2 import Container
from shared.rpc.kms_pb2 import (
    AppId,
    AppKeyResponse,
    AttestationInfoResponse,
    BootstrapResponse,
    GetAppKeyRequest,
    GetMetaResponse,
    KmsKeyResponse,
    KmsKeys,
    ProtoError,
    PublicKeyResponse,
    SignCertRequest,
    SignCertResponse,
)

MESSAGES = [
    AppId,
    AppKeyResponse,
    AttestationInfoResponse,
    GetAppKeyRequest,
    GetMetaResponse,
    KmsKeyResponse,
    PublicKeyResponse,
    SignCertRequest,
    SignCertResponse,
]


def refusal(cls: type[Message], body: bytes, encoding: Encoding = Encoding.JSON) -> str:
    with pytest.raises(ProtocolError) as caught:
        codec.decode(cls, body, encoding)
    return caught.value.code


# ---- the choice of an encoding


@pytest.mark.parametrize(
    ("method", "query", "content_type", "expected"),
    [
        ("GET", "", None, Encoding.JSON),
        ("GET", "json=false", "application/octet-stream", Encoding.JSON),
        ("POST", "json", None, Encoding.JSON),
        ("POST", "json=", None, Encoding.JSON),
        ("POST", "json=1", None, Encoding.JSON),
        ("POST", "json=true", "application/octet-stream", Encoding.JSON),
        ("POST", "a=b&json", None, Encoding.JSON),
        ("POST", "", "application/json", Encoding.JSON),
        ("POST", "", "Application/JSON; charset=utf-8", Encoding.JSON),
        ("POST", "json=false", "application/json", Encoding.JSON),
        ("POST", "", None, Encoding.PROTOBUF),
        ("POST", "", "text/plain", Encoding.PROTOBUF),
        ("POST", "", "application/jsonl", Encoding.PROTOBUF),
        ("POST", "json=false", None, Encoding.PROTOBUF),
        ("POST", "json=TRUE", None, Encoding.PROTOBUF),
        ("POST", "JSON", None, Encoding.PROTOBUF),
        ("POST", "json=false&json=true", None, Encoding.PROTOBUF),
        ("POST", "json=true&json=false", None, Encoding.JSON),
    ],
)
def test_the_encoding_follows_method_query_and_content_type(
    method: str, query: str, content_type: str | None, expected: Encoding
) -> None:
    assert codec.choose_encoding(method, query, content_type) is expected


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("GetMeta", "GetMeta"),
        ("KMS.GetMeta", "GetMeta"),
        ("KMS.KMS.GetMeta", "GetMeta"),
        ("Admin.X", "Admin.X"),
    ],
)
def test_the_service_prefix_is_optional_and_may_repeat(segment: str, name: str) -> None:
    assert codec.method_name("KMS", segment) == name


def test_refuses_an_oversize_query() -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.choose_encoding("POST", "a" * (64 * 1024 + 1), None)
    assert caught.value.code == "prpc.query"


def test_refuses_a_query_of_too_many_fields() -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.choose_encoding("POST", "&".join("a" for _ in range(65)), None)
    assert caught.value.code == "prpc.query"


# ---- protobuf


def test_reproduces_the_protobuf_of_an_app_id() -> None:
    assert codec.encode(AppId(app_id=b"\x11" * 20), Encoding.PROTOBUF) == b"\x0a\x14" + b"\x11" * 20


def test_reproduces_the_protobuf_of_a_key_request() -> None:
    request = GetAppKeyRequest(api_version=1, vm_config="{}")
    assert codec.encode(request, Encoding.PROTOBUF).hex() == "080112027b7d"


def test_reproduces_the_protobuf_of_an_error() -> None:
    body = codec.error_body("App not allowed: No attestation provided", None, Encoding.PROTOBUF)
    assert body.hex() == (
        "0a28417070206e6f7420616c6c6f7765643a204e6f206174746573746174696f6e2070726f7669646564"
    )


@pytest.mark.parametrize("body", [b"\x08", b"\x0a\x05abc", b"\x12\x02\xff\xff", b"\x0b" * 200])
def test_refuses_a_body_that_is_not_the_message(body: bytes) -> None:
    assert refusal(GetAppKeyRequest, body, Encoding.PROTOBUF) == "prpc.protobuf"


@pytest.mark.parametrize("encoding", Encoding)
def test_n03_refuses_an_oversize_body(encoding: Encoding) -> None:
    assert refusal(AppId, bytes(10 * 1024 * 1024 + 1), encoding) == "prpc.size"


@pytest.mark.parametrize("encoding", Encoding)
def test_an_empty_body_is_a_message_of_defaults(encoding: Encoding) -> None:
    assert codec.decode(GetAppKeyRequest, b"", encoding) == GetAppKeyRequest()


# ---- JSON out


def test_bytes_are_lowercase_hex() -> None:
    body = codec.to_json(AppId(app_id=b"\xab\xcd"))
    assert json.loads(body)["app_id"] == "abcd"


def test_every_field_is_present_when_it_is_the_default() -> None:
    assert json.loads(codec.to_json(AppKeyResponse())) == {
        "ca_cert": "",
        "disk_crypt_key": "",
        "env_crypt_key": "",
        "k256_key": "",
        "k256_signature": "",
        "tproxy_app_id": "",
        "gateway_app_id": "",
        "os_image_hash": "",
        "key_epoch": 0,
    }


def test_unset_optionals_and_messages_are_null() -> None:
    meta = json.loads(codec.to_json(GetMetaResponse()))
    assert meta == {
        "ca_cert": "",
        "allow_any_upgrade": False,
        "k256_pubkey": "",
        "bootstrap_info": None,
        "is_dev": False,
        "gateway_app_id": None,
        "kms_contract_address": None,
        "chain_id": None,
        "app_auth_implementation": None,
        "policy": None,
    }


def test_set_optionals_are_present_when_they_are_the_default() -> None:
    meta = json.loads(codec.to_json(GetMetaResponse(gateway_app_id="", chain_id=0)))
    assert (meta["gateway_app_id"], meta["chain_id"]) == ("", 0)


def test_nested_messages_are_objects() -> None:
    meta = GetMetaResponse(bootstrap_info=BootstrapResponse(ca_pubkey=b"\1", attestation=b"\2"))
    info = json.loads(codec.to_json(meta))["bootstrap_info"]
    assert info == {"ca_pubkey": "01", "k256_pubkey": "", "attestation": "02"}


def test_repeated_fields_are_arrays() -> None:
    keys = KmsKeyResponse(keys=[KmsKeys(ca_key="pem", k256_key=b"\3")])
    assert json.loads(codec.to_json(keys)) == {
        "temp_ca_key": "",
        "keys": [{"ca_key": "pem", "k256_key": "03"}],
    }
    assert codec.to_json(SignCertResponse()) == b'{"certificate_chain":[]}'


def test_64_bit_integers_are_numbers() -> None:
    body = codec.to_json(PublicKeyResponse(timestamp=2**64 - 1))
    assert json.loads(body)["timestamp"] == 18446744073709551615


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 2**63 - 1])
def test_signed_integers_are_numbers_too(number: int) -> None:
    container = Container(created=number)
    assert codec.from_json(Container, codec.to_json(container)) == container


@pytest.mark.parametrize(
    ("value", "code"),
    [("9223372036854775808", "prpc.json.range"), ('"1"', "prpc.json.type"), ("true", "prpc.json.type")],
)
def test_refuses_what_is_no_signed_integer(value: str, code: str) -> None:
    assert refusal(Container, f'{{"created":{value}}}'.encode()) == code


@pytest.mark.parametrize(("encoding", "body"), [(Encoding.JSON, b"null"), (Encoding.PROTOBUF, b"")])
def test_an_empty_answer(encoding: Encoding, body: bytes) -> None:
    assert codec.encode(Empty(), encoding) == body


# ---- JSON in


@pytest.mark.parametrize("text", ["abcd", "ABCD", "0xabcd", "0x0xABcd", "0x" * 9 + "aBcD"])
def test_bytes_are_read_in_any_case_after_any_prefixes(text: str) -> None:
    assert codec.from_json(AppId, json.dumps({"app_id": text}).encode()).app_id == b"\xab\xcd"


@pytest.mark.parametrize(
    "text", ["abc", "0Xab", "zz", "ab cd", " ab", "q80=", "x0ab", "\N{FULLWIDTH DIGIT ONE}1"]
)
def test_refuses_bytes_that_are_not_hex(text: str) -> None:
    assert refusal(AppId, json.dumps({"app_id": text}).encode()) == "prpc.json.type"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b'{"api_version":"1"}',
        b'{"api_version":1.0}',
        b'{"api_version":true}',
        b'{"api_version":null}',
        b'{"vm_config":{}}',
        b'{"vm_config":null}',
        b'{"vm_config":"\\ud800"}',
    ],
)
def test_refuses_values_of_another_type(body: bytes) -> None:
    assert refusal(GetAppKeyRequest, body) == "prpc.json.type"


@pytest.mark.parametrize("body", [b'{"certificate_chain":"pem"}', b'{"certificate_chain":[1]}'])
def test_refuses_arrays_of_another_type(body: bytes) -> None:
    assert refusal(SignCertResponse, body) == "prpc.json.type"


@pytest.mark.parametrize("body", [b'{"is_dev":1}', b'{"bootstrap_info":[]}', b'{"bootstrap_info":"x"}'])
def test_refuses_booleans_and_messages_of_another_type(body: bytes) -> None:
    assert refusal(GetMetaResponse, body) == "prpc.json.type"


@pytest.mark.parametrize("number", [-1, 2**32])
def test_refuses_integers_out_of_range(number: int) -> None:
    assert refusal(GetAppKeyRequest, b'{"api_version":%d}' % number) == "prpc.json.range"


@pytest.mark.parametrize("body", [b"{", b"{}}", b"\xff", b'{"a":NaN}', b"{'a':1}", b"\xef\xbb\xbf{}", b" "])
def test_refuses_what_is_not_json(body: bytes) -> None:
    assert refusal(GetAppKeyRequest, body) == "prpc.json.syntax"


def test_n02_refuses_a_key_that_occurs_twice() -> None:
    assert refusal(GetAppKeyRequest, b'{"api_version":1,"api_version":1}') == "prpc.json.duplicate_key"


@pytest.mark.parametrize("depth", [65, 200, 200_000])
def test_refuses_deep_nesting(depth: int) -> None:
    assert refusal(GetAppKeyRequest, b'{"x":' + b"[" * depth + b"]" * depth + b"}") == "prpc.json.depth"


def test_unknown_fields_are_ignored() -> None:
    request = codec.from_json(GetAppKeyRequest, b'{"new":{"a":[null]},"api_version":1}')
    assert request == GetAppKeyRequest(api_version=1)


def test_camel_case_names_are_unknown() -> None:
    assert codec.from_json(GetAppKeyRequest, b'{"apiVersion":1}') == GetAppKeyRequest()


def test_null_leaves_optionals_and_messages_unset() -> None:
    meta = codec.from_json(GetMetaResponse, b'{"bootstrap_info":null,"chain_id":null}')
    assert not meta.HasField("bootstrap_info")
    assert not meta.HasField("chain_id")


def test_an_empty_nested_message_is_set() -> None:
    assert codec.from_json(GetMetaResponse, b'{"bootstrap_info":{}}').HasField("bootstrap_info")


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"not json", b"\xff"])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_method_without_input_ignores_its_body(body: bytes, encoding: Encoding) -> None:
    assert codec.decode(Empty, body, encoding) == Empty()


# ---- GET queries


def test_a_query_gives_the_message() -> None:
    assert codec.from_query(AppId, "app_id=0xABcd&json&more=1").app_id == b"\xab\xcd"


def test_a_query_gives_integers_and_percent_escapes() -> None:
    request = codec.from_query(GetAppKeyRequest, "api_version=1&vm_config=%7B%22a%22%3A+1%7D")
    assert request == GetAppKeyRequest(api_version=1, vm_config='{"a": 1}')


def test_a_query_gives_booleans() -> None:
    assert codec.from_query(GetMetaResponse, "is_dev=true&allow_any_upgrade=false").is_dev


def test_an_empty_query_is_a_message_of_defaults() -> None:
    assert codec.from_query(AppId, "") == AppId()
    assert codec.from_query(Empty, "json=1") == Empty()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("api_version=x", "prpc.json.type"),
        ("api_version=", "prpc.json.type"),
        ("api_version=-1", "prpc.json.type"),
        ("api_version=%D9%A1", "prpc.json.type"),  # an Arabic digit
        ("api_version=" + "9" * 5000, "prpc.json.type"),
        ("api_version=4294967296", "prpc.json.range"),
        ("api_version=1&api_version=1", "prpc.query"),
        ("vm_config=%ff", "prpc.query"),
        ("vm_config=%ed%a0%80", "prpc.query"),
    ],
)
def test_refuses_a_query_that_does_not_fit(query: str, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.from_query(GetAppKeyRequest, query)
    assert caught.value.code == code


@pytest.mark.parametrize("query", ["is_dev=1", "is_dev="])
def test_refuses_booleans_that_are_not_true_or_false(query: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.from_query(GetMetaResponse, query)
    assert caught.value.code == "prpc.json.type"


def test_refuses_messages_and_arrays_in_a_query() -> None:
    for cls, query in ((GetMetaResponse, "bootstrap_info=x"), (SignCertResponse, "certificate_chain=x")):
        with pytest.raises(ProtocolError) as caught:
            codec.from_query(cls, query)
        assert caught.value.code == "prpc.query"


# ---- errors


def test_an_error_is_pretty_json_with_one_key() -> None:
    body = codec.error_body("Service not found: X", None, Encoding.JSON)
    assert body == b'{\n  "error": "Service not found: X"\n}'


def test_an_error_may_carry_our_code() -> None:
    body = codec.error_body("Boot denied", "kms.denied", Encoding.JSON)
    assert body == b'{\n  "error": "Boot denied",\n  "code": "kms.denied"\n}'
    error = ProtoError.FromString(codec.error_body("Boot denied", "kms.denied", Encoding.PROTOBUF))
    assert (error.message, error.code) == ("Boot denied", "kms.denied")


def test_an_error_keeps_text_as_utf8() -> None:
    assert "né\\n" in codec.error_body("né\n", None, Encoding.JSON).decode()


@pytest.mark.parametrize("encoding", Encoding)
def test_an_error_with_a_lone_surrogate_is_still_written(encoding: Encoding) -> None:
    assert b"a?b" in codec.error_body("a\ud800b", None, encoding)


def test_a_quotes_empty_envelope_is_left_out() -> None:
    assert b"attestation" not in codec.to_json(GetQuoteResponse())
    assert b'"attestation":"01"' in codec.to_json(GetQuoteResponse(attestation=b"\1"))


def test_an_envelope_that_is_an_answer_is_never_left_out() -> None:
    assert codec.to_json(AttestResponse()) == b'{"attestation":""}'


@pytest.mark.parametrize("text", ["", "plain", 'wörld \U0001f600 \\ "q"\n\x7f', "\u2028"])
def test_json_in_ascii_says_the_same(text: str) -> None:
    body = json.dumps({text: [text]}, ensure_ascii=False).encode()
    found = codec.ascii_json(body)
    assert found.isascii()
    assert json.loads(found) == {text: [text]}


# ---- properties


# a small alphabet: building hypothesis's table of all characters is slow on a cold machine
TEXT = st.text('aB0x"\\\n\0\xe9\u4f60\U0001f600', max_size=12)
META = st.builds(
    GetMetaResponse,
    ca_cert=TEXT,
    k256_pubkey=st.binary(),
    is_dev=st.booleans(),
    chain_id=st.none() | st.integers(0, 2**64 - 1),
    gateway_app_id=st.none() | TEXT,
    bootstrap_info=st.none() | st.builds(BootstrapResponse, attestation=st.binary()),
)
KEYS = st.builds(
    KmsKeyResponse,
    temp_ca_key=TEXT,
    keys=st.lists(st.builds(KmsKeys, k256_key=st.binary()), max_size=3),
)


@settings(deadline=None)
@given(META | KEYS, st.sampled_from(Encoding))
def test_messages_round_trip(message: Message, encoding: Encoding) -> None:
    assert codec.decode(type(message), codec.encode(message, encoding), encoding) == message


@settings(deadline=None)
@given(st.sampled_from(MESSAGES), st.binary(max_size=200), st.sampled_from(Encoding))
def test_decoding_raises_nothing_but_our_errors(cls: type[Message], body: bytes, encoding: Encoding) -> None:
    with contextlib.suppress(ProtocolError):
        codec.encode(codec.decode(cls, body, encoding), encoding)


QUERY = st.text("ajson=&%+;0129fx/\xe9\ud800", max_size=40)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["0xab", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.data(), st.sampled_from(MESSAGES))
def test_decoding_any_field_values_raises_nothing_but_our_errors(
    data: st.DataObject, cls: type[Message]
) -> None:
    names = [field.name for field in cls.DESCRIPTOR.fields]
    document = data.draw(st.dictionaries(st.sampled_from(names), JSON_VALUES, max_size=4))
    with contextlib.suppress(ProtocolError):
        codec.to_json(codec.from_json(cls, json.dumps(document).encode()))


@settings(deadline=None)
@given(st.sampled_from(MESSAGES), QUERY, QUERY)
def test_queries_raise_nothing_but_our_errors(cls: type[Message], text: str, value: str) -> None:
    name = cls.DESCRIPTOR.fields[0].name
    for query in (text, f"{name}={value}"):
        with contextlib.suppress(ProtocolError):
            codec.from_query(cls, query)
            codec.choose_encoding("POST", query, value)
