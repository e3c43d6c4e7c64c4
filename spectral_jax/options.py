"""Options by name, of data sets and of networks: typed and checked in one place.

They come as text from a command, as lists from JSON, or as they are from Python; what a function or
a class says of its parameters decides what they are turned into.
"""

import ast
import collections.abc
import contextlib
import difflib
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
MISFITS = (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError)


def read_options(
    of: str, given: Mapping[str, Any], kinds: Mapping[str, Any], error: type[ValueError]
) -> dict[str, Any]:
    """Options as the types that are expected of them.

    Args:
      of: what they are options of, for errors.
      given: values by name.
      kinds: what each is to be: bool, int, float, str, `Sequence` or `Mapping` of these, a union,
        or `Any`.
      error: what to raise.

    Raises:
      ValueError: of the given class, for an unknown name, with the nearest known one, or a value
        of another type.

    >>> read_options("a set", {"resplit": "false", "organs": "13"},
    ...              {"resplit": bool, "organs": int}, ValueError)
    {'resplit': False, 'organs': 13}
    """
    values = {}
    for name, value in given.items():
        if name not in kinds:
            nearest = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(kinds)}"
            raise error(f"{of} has no option {name!r}; {hint}")
        try:
            values[name] = _read(value, kinds[name])
        except MISFITS:
            raise error(
                f"{of}: option {name}={value!r}: expected {_describe(kinds[name])}"
            ) from None
    return values


def _read(value: Any, kind: Any) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            with contextlib.suppress(*MISFITS):
                return _read(value, part)
        raise ValueError
    if origin in (collections.abc.Sequence, tuple):
        return tuple(_read(item, parts[0]) for item in _items(value))
    if origin is collections.abc.Mapping:
        values = ast.literal_eval(value) if isinstance(value, str) else value
        if not isinstance(values, Mapping):
            raise ValueError
        return {_read(key, parts[0]): _read(item, parts[1]) for key, item in values.items()}
    if isinstance(value, str) and kind is not str:
        value = {"true": True, "false": False, "none": None}.get(value.lower(), value)
        if isinstance(value, str):
            value = kind(value) if kind in (int, float) else value
    if not _is(value, kind):
        raise ValueError
    return value if value is None else kind(value)


def _is(value: Any, kind: Any) -> bool:
    if kind is bool or isinstance(value, bool | np.bool_):
        return kind is bool and isinstance(value, bool | np.bool_)
    if kind is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    return isinstance(value, numbers.Integral if kind is int else kind)


def _items(value: Any) -> Sequence[Any]:
    """Of a list; or of text: a Python literal, or names with commas between."""
    if isinstance(value, str):
        is_literal = value.lstrip()[:1] in ("(", "[")
        value = ast.literal_eval(value) if is_literal else [x.strip() for x in value.split(",")]
    if not isinstance(value, list | tuple):
        raise ValueError
    return value


def _describe(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in parts)
    if origin in (collections.abc.Sequence, tuple):
        return f"a list, each {_describe(parts[0])}"
    if origin is collections.abc.Mapping:
        return f"a dictionary, of each name {_describe(parts[1])}"
    return NAMES.get(kind, "None")
