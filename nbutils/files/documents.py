"""Small YAML and JSON files and texts of people one does not know: read within bounds, or refused in one sentence.

Used wherever parameters, profiles, judge and training files, templates, cards and an adapter's configuration are read.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, ScalarNode

from nbutils.core.errors import InputError, first_line, shown
from nbutils.files import disk

LIMIT = 2**20  # bytes of a file
DEPTH = 32  # of mappings and lists in each other
VALUES = 50_000  # names and values of a file
DIGITS = 40  # characters of a number
_DEEP = f" is nested more than {DEPTH} deep; write it flatter"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it is there: ten times as fast


def read_text(path: Path, *, where: str = "", limit: int = LIMIT) -> str:
    """Return the text of a regular file, without the mark some editors put before it.

    Args:
        where: what to call the file in an error; by default its path.

    Raises:
        InputError: if it cannot be read, is no regular file, is larger than `limit` bytes, or is no UTF-8 text.
    """
    where = where or str(path)
    with disk.opened(path, where=where) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise InputError(f"{where} is larger than {limit:,} bytes, which no file of this kind is; check what it is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text ({first_line(error)}); save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{where} is not text: it holds NUL characters; check what it is")
    return text


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, see `parse_yaml`."""
    return parse_yaml(read_text(path), str(path))


def read_json(path: Path, *, limit: int = LIMIT) -> Any:
    """Return the content of a JSON file, see `parse_json`."""
    return parse_json(read_text(path, limit=limit), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return what a YAML text says: names and dates as text, finite numbers, true, false, null, lists, mappings.

    Args:
        where: what to call the text in an error.

    Raises:
        InputError: if it is no YAML, holds anchors, aliases, tags, a name twice or a number nobody needs, or is nested
            or filled beyond what such a file needs.

    >>> parse_yaml("{day: 2024-01-01, size: 3}", "it")
    {'day': '2024-01-01', 'size': 3}
    """
    try:
        # first without building anything: what refers to itself may be larger than any memory
        _bounded(_levels(text), where)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe one
    except yaml.MarkedYAMLError as error:
        no = "" if isinstance(error, ConstructorError) else " is no YAML"
        raise InputError(f"{where}{no}: {error.problem or error.context}{_line(error.problem_mark)}") from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where} is no YAML: {first_line(error)}") from None


def parse_json(text: str, where: str) -> Any:
    """Return what a JSON text says.

    Args:
        where: what to call the text in an error.

    Raises:
        InputError: as `parse_yaml`.
    """
    try:
        content = json.loads(
            text, object_pairs_hook=_unique, parse_int=_number(int), parse_float=_number(float), parse_constant=_finite
        )
        _bounded(_depths(content), where)
    except RecursionError:
        raise InputError(f"{where}{_DEEP}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is no JSON: {first_line(error)}") from None
    return content


def _bounded(depths: Iterator[int], where: str) -> None:
    for count, depth in enumerate(depths):
        if depth > DEPTH:
            raise InputError(f"{where}{_DEEP}")
        if count > VALUES:
            raise InputError(f"{where} holds more than {VALUES:,} values, which no file of this kind does; shorten it")


def _levels(text: str) -> Iterator[int]:
    """Yield the depth of every value of a YAML text."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _fault("an anchor (&) or alias (*) is not taken, write the value out or quote the text", event)
        if tag := getattr(event, "tag", None):
            raise _fault(f"a tag ({shown(tag)}) is not taken", event)
        depth += isinstance(event, yaml.CollectionStartEvent)
        yield depth
        depth -= isinstance(event, yaml.CollectionEndEvent)


def _depths(content: Any) -> Iterator[int]:
    """Yield the depth of every value of a JSON text's content."""
    todo = [(content, 0)]
    while todo:
        value, depth = todo.pop()
        yield depth
        if isinstance(value, dict | list):
            todo += [(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]


class _Loader(_Base):  # type: ignore[misc]
    """A safe loader in which a name is the text that stands there, and stands there once."""

    # without dates, and without `<<` and `=`, which mean something to YAML only
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("bool", "int", "float", "null")]
        for first, forms in _Base.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise _fault("a name has to be text", key)
            if key.value in result:
                raise _fault(f"{shown(key.value)} stands there twice", key)
            result[key.value] = self.construct_object(value, deep=True)
        return result


def _fault(problem: str, at: Any) -> ConstructorError:
    return ConstructorError(None, None, problem, at.start_mark)


def _checked(construct: Callable[[Any, ScalarNode], float]) -> Callable[[Any, ScalarNode], float]:
    def checked(loader: Any, node: ScalarNode) -> float:
        try:
            return _number(lambda _: construct(loader, node))(node.value)
        except (ValueError, OverflowError) as error:
            raise _fault(first_line(error), node) from None

    return checked


_Loader.add_constructor("tag:yaml.org,2002:int", _checked(SafeConstructor.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _checked(SafeConstructor.construct_yaml_float))


def _number(make: Callable[[str], float]) -> Callable[[str], float]:
    """Return `make` for numbers that somebody may mean: short and finite."""

    def number(text: str) -> float:
        if len(text) > DIGITS:
            raise ValueError(f"a number of {len(text)} characters")
        return value if math.isfinite(value := make(text)) else _finite(text)

    return number


def _finite(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{shown(name)} stands there twice")
        result[name] = value
    return result


def _line(mark: Any) -> str:
    return f" (line {mark.line + 1})" if mark else ""
