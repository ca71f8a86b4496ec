"""From what a user typed to a mapping, and from a validation error to one line.

Knows YAML and the shape of pydantic's errors; does not know which settings exist.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from muki_ray.config_section import NO_MAPPING
from muki_ray.errors import ConfigError
from muki_ray.uris import clean

_LONGEST_VALUE = 120  # characters of a wrong value that a message shows


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which keeps the last of two equal keys without a word; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            # `<<` may come more than once; its keys are meant to be overridden
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                problem = f"key {key.value!r} is given twice; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> Any:
    """What a YAML file says.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is not YAML.
    """
    try:
        return yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration file at {path!r}; give the path of a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read configuration {path!r}: {error}; give a YAML file in UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path!r} is not valid YAML: {_where_and_why(error)}") from error


def _where_and_why(error: yaml.YAMLError) -> str:
    """The error without the piece of the file that PyYAML quotes, in which half a password may stand."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    context = f"{error.context}, " if error.context else ""
    return f"{context}{error.problem} (line {mark.line + 1}, column {mark.column + 1})"


def override(content: dict[str, Any], text: str) -> dict[str, Any]:
    """A copy of `content` with one `dotted.key=value` applied; the value is YAML, list items go by index.

    Raises:
        ConfigError: the text has another form, or the key leads through something that has no keys.
    """
    key, equals, given = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(
            f"override {text!r} is not of the form dotted.key=value; write it like training.epochs=5"
        )
    try:
        value = yaml.load(given, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the value of override {text!r} is not valid YAML: {_where_and_why(error)}"
        ) from error

    def put(node: Any, path: list[str]) -> Any:
        if not path:
            return value
        head, rest = path[0], path[1:]
        if isinstance(node, list):
            if not head.isdecimal() or int(head) >= len(node):
                raise ConfigError(
                    f"override {text!r}: {head!r} is not an index into a list of {len(node)}; count from 0"
                )
            return [put(item, rest) if i == int(head) else item for i, item in enumerate(node)]
        if node is not None and not isinstance(node, dict):
            raise ConfigError(
                f"override {text!r}: {head!r} lies inside a value that is not a mapping ({shown(node)}); "
                "set that value as a whole"
            )
        return {**(node or {}), head: put((node or {}).get(head), rest)}

    path = key.split(".")
    method = content.get("method")
    if path[0] == "method" and len(path) > 1 and isinstance(method, str):
        content = {**content, "method": {"kind": method}}  # `method: paper` is short for this
    result: dict[str, Any] = put(content, path)
    return result


def first_problem(error: ValidationError) -> str:
    """One line for the first validation problem: where, the value received and the remedy."""
    problems = error.errors(include_url=False)
    first = problems[0]
    loc, kind = first["loc"], first["type"]
    where = _where(loc)
    if kind == "missing":
        text = f"{where} is missing; add it"
    elif kind == "extra_forbidden":
        value = shown(first["input"])
        if _is_tagged(loc) and len(loc) == 3:  # other kinds may have it
            text = f"{where} is not a setting of {loc[0]} {loc[1]} (value {value}); check the spelling and the kind"
        else:
            text = f"{where} is not a known setting (value {value}); check the spelling"
    elif kind == "value_error":
        text = f"{where}: {first['ctx']['error']}"
    elif kind == NO_MAPPING:
        form = _form(first["ctx"]["required"], first["input"])
        key = "" if isinstance(loc[-1], int) else f"{loc[-1]}: "
        text = f"{where} must be a mapping of settings, got {shown(first['input'])}; write {key}{form}"
    elif kind in ("model_type", "model_attributes_type"):
        text = f"{where} must be a mapping of settings, got {shown(first['input'])}"
    else:
        text = f"{where}: {first['msg']}, got {shown(first['input'])}"
    more = len(problems) - 1
    return text + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _form(required: Sequence[str], value: Any) -> str:
    """A mapping in YAML of the settings that are required; a text is taken for the last of them."""
    content = {name: f"<{name}>" for name in required}
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_VALUE:
        content[required[-1]] = clean(value)
    form = yaml.safe_dump(
        content, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return str(form).strip()


def shown(value: Any) -> str:
    """A value as a message shows it: without credentials, cut where it is long, so that the line stays readable."""
    text = clean(repr(value))  # before it is cut: half a URI is not known for one
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _where(loc: tuple[int | str, ...]) -> str:
    """Dotted key as users write it, without the tag of a union that pydantic adds."""
    parts = [loc[0], *loc[2:]] if _is_tagged(loc) else loc
    return ".".join(map(str, parts)) or "configuration"


def _is_tagged(loc: tuple[int | str, ...]) -> bool:
    """Whether the second part is the kind of a union's member, which no user wrote there."""
    return len(loc) > 1 and loc[0] == "method"
