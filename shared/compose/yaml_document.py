"""YAML as data alone: every scalar stays text, tags are refused, and aliases cannot multiply.

PyYAML turns bytes into events; composing them is done here, so that what a document may cost is counted. What
`yes` or `0o17` mean is left to whoever reads the text: nothing is lost that a tool of another YAML version
would see.
"""

from collections.abc import Iterator
from typing import Any, Final

from shared.errors import ProtocolError

MAX_YAML_BYTES: Final = 1024 * 1024  # a large compose file has 20 KiB; inline configs may come on top
MAX_YAML_NODES: Final = 100_000  # with every alias counted at its full size
MAX_YAML_DEPTH: Final = 32  # a compose file nests six levels

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_MERGE: Final = "<<"
# Another tag changes what others read: to Compose `!!binary aW1hZ2U=` is the key `image`, a second one.
_TAGS: Final = frozenset({None, *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))})

Yaml = str | list[Any] | dict[str, Any] | None


def read_yaml(text: str) -> Yaml:
    """Return the one document of `text`: dicts with text keys, lists, texts, and None for a plain null.

    Merge keys are applied. Raises `ProtocolError`: `yaml.size` (bytes, or nodes with aliases written out),
    `yaml.depth`, `yaml.syntax`, `yaml.documents` (not exactly one), `yaml.key` (a key that is no text),
    `yaml.duplicate_key`, `yaml.merge`, `yaml.tag` (an explicit tag of another kind than text, list and map).
    """
    import yaml  # noqa: PLC0415 - of the command line alone, and only where a compose file is read

    # surrogates are no YAML characters, so the parser refuses them
    if len(text.encode(errors="surrogatepass")) > MAX_YAML_BYTES:
        raise ProtocolError("yaml.size", f"the yaml has more than {MAX_YAML_BYTES} bytes")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Composer(yaml.parse(text, Loader=loader)).document()
    except (yaml.YAMLError, UnicodeError) as error:
        # PyYAML's own sentence may quote the document, which may hold a secret
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", at line {mark.line + 1}"
        raise ProtocolError("yaml.syntax", f"the text is not yaml{where}") from error


class _Composer:
    """Builds values from events, and counts what they would be with every alias written out."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, tuple[Yaml, int]] = {}
        self._count = 0

    def document(self) -> Yaml:
        value: Yaml = None
        documents = 0
        for event in self._events:
            if type(event).__name__ == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    break
                value = self._node(next(self._events), 0)
        if documents != 1:
            raise ProtocolError("yaml.documents", "the yaml has not exactly one document")
        return value

    def _node(self, event: Any, depth: int) -> Yaml:  # noqa: ANN401 - PyYAML ships no types
        if depth > MAX_YAML_DEPTH:
            raise ProtocolError("yaml.depth", f"the yaml nests deeper than {MAX_YAML_DEPTH} levels")
        before = self._count
        self._add(1)
        kind = type(event).__name__
        value: Yaml
        if kind == "AliasEvent":
            if event.anchor not in self._anchors:
                raise ProtocolError("yaml.syntax", f"the alias {event.anchor[:40]!a} names no earlier anchor")
            value, size = self._anchors[event.anchor]
            self._add(size)
            return value
        if event.tag not in _TAGS:
            raise ProtocolError("yaml.tag", f"the yaml has the tag {event.tag[:60]!a}: write it without")
        if kind == "ScalarEvent":
            # the two parsers of PyYAML name the plain style None and ""
            plain_null = not event.style and event.implicit[0] and event.value in _NULL
            value = None if plain_null else str(event.value)
        elif kind == "SequenceStartEvent":
            value = [self._node(item, depth + 1) for item in self._until("SequenceEndEvent")]
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._count - before)
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        merges = False
        for event in self._until("MappingEndEvent"):
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            if not isinstance(key, str):
                raise ProtocolError("yaml.key", "the yaml has a key that is no text")
            if key == _MERGE and not merges:
                merges = True
                _merge(merged, value)
            elif key in own or key == _MERGE:
                raise ProtocolError("yaml.duplicate_key", f"the yaml has the key {key[:40]!a} twice")
            else:
                own[key] = value
        return merged | own

    def _until(self, end: str) -> Iterator[Any]:
        for event in self._events:
            if type(event).__name__ == end:
                return
            yield event

    def _add(self, nodes: int) -> None:
        self._count += nodes
        if self._count > MAX_YAML_NODES:
            raise ProtocolError("yaml.size", f"the yaml has more than {MAX_YAML_NODES} nodes")


def _merge(into: dict[str, Any], value: Yaml) -> None:
    """Apply a merge key: one mapping, or several of which an earlier one wins."""
    for source in value if isinstance(value, list) else [value]:
        if not isinstance(source, dict):
            raise ProtocolError("yaml.merge", "a merge key holds something that is no mapping")
        for key, item in source.items():
            into.setdefault(key, item)
