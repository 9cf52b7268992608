"""The request body is read as leniently as the reference reads it but for short hex, and no more."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.authorize.request import parse_boot_info
from shared.errors import ProtocolError
from tests.shared.refusal import refuses

BODY: dict[str, Any] = {
    "mrAggregated": "aa" * 32,
    "osImageHash": "0x" + "bb" * 32,
    "appId": "cc" * 20,
    "composeHash": "",
    "instanceId": "",
    "deviceId": "dd" * 32,
}


def refused(body: object) -> bool:
    with pytest.raises(ProtocolError) as caught:
        parse_boot_info(body)
    return caught.value.code == "authorize.request.invalid"


def test_reads_both_forms_of_hex() -> None:
    boot_info = parse_boot_info(BODY)
    assert (boot_info.mr_aggregated, boot_info.os_image_hash) == (b"\xaa" * 32, b"\xbb" * 32)


def test_optional_fields_have_defaults() -> None:
    boot_info = parse_boot_info(BODY)
    assert (boot_info.tcb_status, boot_info.advisory_ids, boot_info.mr_system) == ("", (), bytes(32))


@pytest.mark.parametrize(
    "name", ["mrAggregated", "osImageHash", "appId", "composeHash", "instanceId", "deviceId"]
)
def test_six_fields_are_required(name: str) -> None:
    assert refused({key: value for key, value in BODY.items() if key != name})


@pytest.mark.parametrize("value", ["0x", "", None])
def test_hex_that_is_absent_is_zero(value: object) -> None:
    assert parse_boot_info({**BODY, "composeHash": value}).compose_hash == bytes(32)


@pytest.mark.parametrize("value", ["1" * 64, ["0x" + "1" * 64], ["1" * 64]])
def test_hex_of_full_width_is_taken_with_the_references_coercions(value: object) -> None:
    assert parse_boot_info({**BODY, "composeHash": value}).compose_hash == b"\x11" * 32


@pytest.mark.parametrize("value", ["789", "0x789", "0x01", 5, 5.0, 10**20, 2**53 + 1, ["0x12"], "1" * 62])
def test_short_hex_is_refused_and_not_padded(value: object) -> None:
    with refuses("authorize.request.short_hex", ProtocolError):
        parse_boot_info({**BODY, "composeHash": value})


def test_31_bytes_of_a_listed_hash_do_not_become_another() -> None:
    """A hash that begins with a zero byte, and its last 31 bytes: padded, they would be the same."""
    with refuses("authorize.request.short_hex", ProtocolError):
        parse_boot_info({**BODY, "osImageHash": "bb" * 31})


@pytest.mark.parametrize(
    "value",
    [
        "0X01",
        "zz",
        "0x0x1",
        " 1",
        "1 ",
        "1" * 65,
        True,
        1.5,
        -1,
        1e21,
        {},
        [],
        ["1", "2"],
        [["1"]],
        "é",
        "\uff11",
    ],
)
def test_refuses_what_is_no_hex_of_the_field(value: object) -> None:
    assert refused({**BODY, "composeHash": value})


@pytest.mark.parametrize("value", ["1" * 41, "0x" + "1" * 41])
def test_refuses_an_app_id_above_20_bytes(value: str) -> None:
    assert refused({**BODY, "appId": value})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("INTEL-SA-1", ("INTEL-SA-1",)),
        (None, ("",)),
        (7, ("7",)),
        ([], ()),
        (["a", None, 1, True], ("a", "", "1", "true")),
    ],
)
def test_advisories_are_coerced(value: object, expected: tuple[str, ...]) -> None:
    assert parse_boot_info({**BODY, "advisoryIds": value}).advisory_ids == expected


@pytest.mark.parametrize("value", [{}, ["a"] * 129, ["a" * 257], [{}], [["a", "b"]]])
def test_n03_refuses_advisories_out_of_bounds(value: object) -> None:
    assert refused({**BODY, "advisoryIds": value})


def test_n03_refuses_a_long_tcb_status() -> None:
    assert parse_boot_info({**BODY, "tcbStatus": "a" * 128}).tcb_status == "a" * 128
    assert refused({**BODY, "tcbStatus": "a" * 129})


@pytest.mark.parametrize("name", ["tcbStatus", "advisoryIds", "appId", "mrSystem"])
@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, -math.inf, math.nan, [10**400]])
def test_refuses_a_number_that_no_double_holds(name: str, value: object) -> None:
    assert refused({**BODY, name: value})


def test_largest_doubles_are_text() -> None:
    assert parse_boot_info({**BODY, "tcbStatus": 1e308}).tcb_status == "1e+308"
    assert parse_boot_info({**BODY, "tcbStatus": 10**308}).tcb_status == "1e+308"


@pytest.mark.parametrize("body", [None, [], "text", 1, [BODY]])
def test_refuses_a_body_that_is_no_object(body: object) -> None:
    assert refused(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*BODY, "tcbStatus", "advisoryIds", "mrSystem", "teeVariant"]), JSON))
def test_garbage_raises_no_error_but_ours(changes: dict[str, object]) -> None:
    with contextlib.suppress(ProtocolError):
        parse_boot_info({**BODY, **changes})
