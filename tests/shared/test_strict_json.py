"""JSON from strangers costs no more than its size."""

import subprocess
import sys

import pytest

from shared.errors import ProtocolError
from shared.strict_json import decode_json

SCRIPT = """
import resource
from shared.errors import ProtocolError
from shared.strict_json import decode_json
body = {body}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_json(body, what="it", code="test", max_bytes=1 << 24)
except ProtocolError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
KIBIBYTES = 100 * 1024


@pytest.mark.parametrize(
    "body",
    [
        """b'{"a":"' + b'[' * 100 + b'a' * 10_000_000 + b'"}'""",
        """b'[' * 60 + b'"[[[[[' + b'a' * 10_000_000""",
        r"""b'[' * 60 + b'"[[[[[' + b'\\\\' * 5_000_000""",
    ],
)
def test_a_long_string_takes_no_memory_beyond_its_own_size(body: str) -> None:
    """A backtracking search would keep more than a gigabyte of state for these ten megabytes."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < KIBIBYTES


def test_brackets_in_strings_do_not_nest() -> None:
    raw = b'{"a":"' + b"[" * 1000 + b'\\"{"}'
    assert decode_json(raw, what="it", code="test", max_bytes=10_000) == {"a": "[" * 1000 + '"{'}


@pytest.mark.parametrize("raw", [rb'{"\ud800":1}', rb'[{"a":{"x\udfff":1}}]'])
def test_a_key_is_text(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as refusal:
        decode_json(raw, what="it", code="test", max_bytes=1000)
    assert refusal.value.code == "test.syntax"


def test_a_key_may_have_any_letters() -> None:
    raw = '{"é":1,"\\ud83d\\ude00":2}'.encode()
    assert decode_json(raw, what="it", code="test", max_bytes=1000) == {"é": 1, "😀": 2}


def test_takes_the_deepest_document_that_is_allowed() -> None:
    assert decode_json(b"[" * 64 + b"]" * 64, what="it", code="test", max_bytes=1000)


@pytest.mark.parametrize("depth", [65, 100_000])
def test_n03_refuses_by_depth_before_parsing(depth: int) -> None:
    with pytest.raises(ProtocolError) as refusal:
        decode_json(b"[" * depth + b"]" * depth, what="it", code="test", max_bytes=1 << 20)
    assert refusal.value.code == "test.depth"
