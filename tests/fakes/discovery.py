"""A Google API as its discovery document has it: which path is which method, and what may stand in a body."""

import base64
import binascii
import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import unquote

import msgspec

STREAMED = {
    "firestore.projects.databases.documents.batchGet",
    "firestore.projects.databases.documents.runQuery",
}
"""Methods whose answer is a JSON array of the documented message."""

ALSO_ALLOWED = {
    # the service's own rules bind the root of the database too; a discovery document has room for one pattern
    (
        "firestore.projects.databases.documents.runQuery",
        "parent",
    ): r"^projects/[^/]+/databases/[^/]+/documents$",
}

_SIGNED = {"int32": 31, "int64": 63}
_UNSIGNED = {"uint32": 32, "uint64": 64}
_JSON_TYPES = {"string": str, "integer": int, "boolean": bool, "number": (int, float), "array": list}


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One method and one of the paths that it has. `upload` says that the path is for media."""

    id: str
    http_method: str
    path: re.Pattern[str]
    names: tuple[str, ...]
    parameters: dict[str, dict[str, Any]]
    request: str
    response: str
    weight: int
    upload: bool = False
    media_download: bool = False

    def params_of(self, path: str) -> dict[str, str] | None:
        """Return the parameters in a path as it was sent, or None if it is not this method's."""
        found = self.path.fullmatch(path)
        return found and {
            name: unquote(value) for name, value in zip(self.names, found.groups(), strict=True)
        }

    def mismatch(self, params: Mapping[str, str]) -> str:
        """Name the first parameter of the path that does not have its pattern."""
        for name, value in params.items():
            patterns = [self.parameters[name].get("pattern"), ALSO_ALLOWED.get((self.id, name))]
            wanted = [pattern for pattern in patterns if pattern is not None]
            if wanted and not any(re.fullmatch(pattern, value) for pattern in wanted):
                return f"{name} is {value!r}, not {wanted[0]}"
        return ""


class Api:
    """One document: its methods by path, its schemas."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.name: str = document["name"]
        self._schemas: dict[str, dict[str, Any]] = document["schemas"]
        self._global = document["parameters"]
        self.methods = tuple(self._methods(document, "/" + document["servicePath"]))
        self.ids = frozenset(method.id for method in self.methods)

    def _methods(self, node: dict[str, Any], base: str) -> Iterator[Method]:
        for found in node.get("methods", {}).values():
            for path in (base + found["path"], *_download_paths(found, base)):
                yield self._method(found, path, upload=False)
            for protocol in found.get("mediaUpload", {}).get("protocols", {}).values():
                yield self._method(found, protocol["path"], upload=True)
        for resource in node.get("resources", {}).values():
            yield from self._methods(resource, base)

    def _method(self, found: dict[str, Any], path: str, *, upload: bool) -> Method:
        pattern, names = _compiled(path)
        return Method(
            id=found["id"],
            http_method=found["httpMethod"],
            path=pattern,
            names=names,
            parameters=found["parameters"],
            request=found.get("request", {}).get("$ref", ""),
            response=found.get("response", {}).get("$ref", ""),
            weight=len(re.sub(r"\{[^}]*\}", "", path)),
            upload=upload,
            media_download=found.get("supportsMediaDownload", False),
        )

    def query(self, method: Method, given: Mapping[str, list[str]]) -> tuple[dict[str, Any], list[str]]:
        """Return the typed query and what is wrong with it."""
        query: dict[str, Any] = {}
        wrong = []
        for name, texts in given.items():
            rule = method.parameters.get(name, self._global.get(name))
            if rule is None or rule["location"] != "query":
                wrong.append(
                    f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query parameter'
                )
                continue
            if len(texts) > 1 and not rule.get("repeated"):
                wrong.append(f"query parameter {name} came {len(texts)} times")
            values = [_typed(rule, text) for text in texts]
            wrong += [
                f"query parameter {name}: {problem}"
                for value in values
                for problem in self.problems(rule, value, name)
            ]
            query[name] = values if rule.get("repeated") else values[0]
        wrong += [
            f"Required parameter: {name}"
            for name, rule in method.parameters.items()
            if rule.get("required") and rule["location"] == "query" and name not in given
        ]
        return query, wrong

    def body_problems(self, schema: str, body: object, method_id: str = "") -> list[str]:
        """Say what in a body is not as the schema has it; of requests, required fields too."""
        return list(self.problems({"$ref": schema}, body, "", method_id))

    def problems(self, rule: dict[str, Any], value: object, at: str, method_id: str = "") -> Iterator[str]:
        """Go through a value with its rule."""
        if "$ref" in rule:
            rule = self._schemas[rule["$ref"]]
        kind = rule.get("type", "any")
        if value is None or kind == "any":
            return
        if kind == "object":
            yield from self._object_problems(rule, value, at, method_id)
        elif kind == "array":
            if not isinstance(value, list):
                yield f"{at} is {_named(value)}, not a list"
                return
            for number, item in enumerate(value):
                yield from self.problems(rule["items"], item, f"{at}[{number}]", method_id)
        else:
            yield from _scalar_problems(rule, value, at)

    def _object_problems(self, rule: dict[str, Any], value: object, at: str, method_id: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{at or 'the body'} is {_named(value)}, not an object"
            return
        known = rule.get("properties", {})
        other = rule.get("additionalProperties")
        for name, item in value.items():
            inside = known.get(name, other)
            if inside is None:
                yield f"Invalid JSON payload received. Unknown name \"{name}\" at '{at}': Cannot find field."
            else:
                yield from self.problems(inside, item, f"{at}.{name}" if at else name, method_id)
        for name, inside in known.items():
            required = inside.get("annotations", {}).get("required", ())
            if method_id in required and value.get(name) is None:
                yield (
                    f"Required field '{at}.{name}' not specified"
                    if at
                    else f"Required field '{name}' not specified"
                )


def _download_paths(found: dict[str, Any], base: str) -> list[str]:
    return [f"/download{base}{found['path']}"] if found.get("useMediaDownloadService") else []


def _compiled(template: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    pattern = ""
    names = []
    for literal, plus, name in re.findall(r"([^{]*)(?:\{(\+?)([^}]+)\})?", template):
        pattern += re.escape(literal)
        if name:
            names.append(name)
            pattern += "(.+)" if plus else "([^/]+)"
    return re.compile(pattern), tuple(names)


def _typed(rule: dict[str, Any], text: str) -> object:
    if rule["type"] == "boolean" and text in {"true", "false"}:
        return text == "true"
    if rule["type"] == "integer" and re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    if rule["type"] == "number":
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _scalar_problems(rule: dict[str, Any], value: object, at: str) -> Iterator[str]:
    kind, form = rule["type"], rule.get("format", "")
    # numbers of 64 bits are strings in JSON, and numbers are taken too
    wide = form in {"int64", "uint64"} and isinstance(value, int)
    fits = isinstance(value, _JSON_TYPES[kind]) and not (isinstance(value, bool) and kind != "boolean")
    if not (fits or (wide and not isinstance(value, bool))):
        yield f"Invalid value at '{at}' ({form or kind}), {value!r}"
    elif "enum" in rule and value not in rule["enum"]:
        yield f"Invalid value for field '{at}': '{value}'. Must be one of {rule['enum']}"
    elif not _has_form(form, value):
        yield f"Invalid value at '{at}' ({form}), {str(value)[:80]!r}"


def _has_form(form: str, value: object) -> bool:
    if form in _SIGNED or form in _UNSIGNED:
        low = -(1 << _SIGNED[form]) if form in _SIGNED else 0
        high = 1 << (_SIGNED | _UNSIGNED)[form]
        return re.fullmatch(r"-?[0-9]+", str(value)) is not None and low <= int(str(value)) < high
    return _FORMS.get(form, lambda _: True)(str(value))


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _is_time(text: str) -> bool:
    try:
        return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).tzinfo is not None
    except ValueError:
        return False


_FORMS: dict[str, Callable[[str], bool]] = {
    "byte": _is_base64,
    "google-datetime": _is_time,
    "date-time": _is_time,
    "google-duration": lambda text: re.fullmatch(r"-?[0-9]+(\.[0-9]{1,9})?s", text) is not None,
}


def _named(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(
        type(value), "a number"
    )


@cache
def load_api(name: str) -> Api:
    """Return an API by its document's name, such as `compute.v1`."""
    place = files("googleapiclient") / "discovery_cache" / "documents" / f"{name}.json"
    return Api(msgspec.json.decode(place.read_bytes()))
