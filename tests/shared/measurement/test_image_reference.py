"""References to images, as docker reads them, and the digest that measured ones need."""

import pytest

from shared.errors import ConfigError
from shared.measurement.image_reference import match_digest, parse_reference, pinned_digest

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("org/app", "docker.io/org/app:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/org/app:x", "docker.io/org/app:x"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("ghcr.io/a/b/c:1.2_3-x", "ghcr.io/a/b/c:1.2_3-x"),
        ("[::1]:5000/app:x", "[::1]:5000/app:x"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}"),
        (f"debian:12@{DIGEST}", f"docker.io/library/debian:12@{DIGEST}"),
        (f"r.example:5000/a@{DIGEST}", f"r.example:5000/a@{DIGEST}"),
        ("a__b/c.d-e--f", "docker.io/a__b/c.d-e--f:latest"),
    ],
)
def test_reads_a_reference_as_docker_does(text: str, whole: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == whole
    assert parse_reference(whole) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "UPPER",
        "a b",
        "a//b",
        "a/",
        "/a",
        "../a",
        "a:",
        "a:b:c",
        "a:" + "t" * 129,
        "https://host/a",
        "host.example:port/a",
        "user@host.example/a",
        "ho_st.example/a",
        "a\n",
        "x" * 256,
        "host.example/" + "x" * 250,
    ],
)
def test_n06_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reference(text)
    assert caught.value.code in {"image.reference.syntax", "image.digest"}


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:" + "AB" * 32, "sha512:" + "ab" * 64, DIGEST + "0"]
)
def test_a_digest_that_is_no_sha256_is_refused(digest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reference(f"debian@{digest}")
    assert caught.value.code == "image.digest"


@pytest.mark.parametrize("text", ["debian", "debian:12", "ghcr.io/a/b:latest"])
def test_n73_an_image_without_a_digest_is_refused_where_it_is_measured(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pinned_digest(parse_reference(text))
    assert caught.value.code == "image.reference.unpinned"


def test_a_pinned_image_has_its_digest() -> None:
    assert pinned_digest(parse_reference(f"debian@{DIGEST}")) == b"\xab" * 32


def test_docker_hub_answers_elsewhere() -> None:
    assert parse_reference("debian").api_host == "registry-1.docker.io"
    assert parse_reference("ghcr.io/a").api_host == "ghcr.io"


@pytest.mark.parametrize("value", [None, 7, b"sha256:" + b"ab" * 32, "ab" * 32])
def test_only_text_with_its_algorithm_is_a_digest(value: object) -> None:
    assert match_digest(value) is None
