"""What runs the pages' commands sees what is wrong with a page."""

import os
from pathlib import Path

import pytest

from tests.docs.console_page import Command, File, Session, matches, steps, table_codes, wrong

PAGE = """
```json a/b.json
{"at": "example.com"}
```

```console
$ cat a/b.json
{"at": "example.com"}
$ echo one &&
> echo two
one
two
# somebody else acts
$ dstack-cloud compose hash gone.json; echo "exit $?"
Usage: …
…
exit 2
```
"""
ACT = "# somebody else acts"


def test_a_page_is_taken_in_its_order() -> None:
    assert steps(PAGE, ACT)[:3] == [
        File("a/b.json", '{"at": "example.com"}\n'),
        Command("cat a/b.json", ['{"at": "example.com"}']),
        Command("echo one &&\necho two", ["one", "two"]),
    ]


def test_commands_are_run_and_words_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    acted: list[str] = []
    session = Session(tmp_path, {"example.com": "127.0.0.1"}, {ACT: lambda: acted.append("once")})
    done = session.take(PAGE)
    assert wrong(done) == []
    assert acted == ["once"]
    assert (tmp_path / "a" / "b.json").read_text() == '{"at": "127.0.0.1"}\n'


def test_directories_and_variables_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAGE_X", "")
    (tmp_path / "sub").mkdir()
    session = Session(tmp_path)
    assert session.type("cd sub") == session.type("export PAGE_X=$(printf two; printf three)") == []
    assert session.type("echo $PAGE_X") == ["twothree"]
    assert Path.cwd() == tmp_path / "sub"
    assert os.environ["PAGE_X"] == "twothree"


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        (["a"], []),
        ([], ["a"]),
        (["a"], ["b"]),
        (["a", "…"], ["b", "a"]),
        (["a…c"], ["ab"]),
        (["…", "z"], ["a", "b"]),
        (["a.c"], ["abc"]),
    ],
)
def test_other_output_does_not_match(shown: list[str], came: list[str]) -> None:
    assert not matches(shown, came)


def test_a_gap_is_any_lines_or_any_text() -> None:
    assert matches(["a", "…", "z"], ["a", "z"])
    assert matches(["a", "…", "z"], ["a", "b", "c", "z"])
    assert matches(["x … y"], ["x 1 2 y"])


def test_codes_are_those_of_the_first_column() -> None:
    page = "## A\n| `a.b`, `c.d` | `e.f` |\n\n## B\n| `g.h` | |\n"
    assert table_codes(page, "## A") == ["a.b", "c.d"]
