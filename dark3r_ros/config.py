# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclass configurations whose fields carry unit, range and meaning.

The same dataclasses serve the command line, ROS parameters and saved result folders. A field is declared with
`setting(...)`; `from_mapping` refuses unknown keys and wrong types, `validate` checks the ranges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from dark3r_ros.errors import ConfigError

T = TypeVar('T')


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = '',
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] = (),
    dynamic: bool = False,
) -> Any:
    """Declare one configuration field.

    Parameters
    ----------
    default: value used when the user says nothing; its type is the type of the field.
    doc: what the value means, one sentence.
    unit: physical unit, empty where there is none.
    minimum, maximum: inclusive bounds of a number.
    choices: allowed values.
    dynamic: whether a running node accepts a change.

    """
    metadata = {
        'doc': doc,
        'unit': unit,
        'minimum': minimum,
        'maximum': maximum,
        'choices': choices,
        'dynamic': dynamic,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Config:
    """Base of all configurations: validates itself on construction. Subclasses are frozen dataclasses."""

    def __post_init__(self) -> None:
        validate(self)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def validate(config: Any) -> None:
    """Raise ConfigError naming the first field whose type, range or choice is violated."""
    name = type(config).__name__
    hints = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        where = f'{name}.{item.name}'
        kind = hints[item.name]
        if kind in (int, float, bool, str):
            accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
                raise ConfigError(f'{where} must be {kind.__name__}, got {value!r}')
        choices = item.metadata.get('choices') or ()
        if choices and value not in choices:
            raise ConfigError(f'{where} = {value!r} is not one of {", ".join(map(str, choices))}')
        for bound, sign, word in (('minimum', 1, 'below'), ('maximum', -1, 'above')):
            limit = item.metadata.get(bound)
            # `not >=` instead of `<`, so that NaN is refused as well.
            if limit is not None and not sign * value >= sign * limit:
                raise ConfigError(f'{where} = {value!r} is {word} the {bound} {limit} {item.metadata["unit"]}'.rstrip())


def from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a configuration from plain values; unknown keys are refused with the nearest known names listed."""
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f'unknown setting {unknown[0]!r} for {cls.__name__}; known: {", ".join(sorted(known))}')
    hints = get_type_hints(cls)
    converted: dict[str, Any] = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            value = from_mapping(hints[key], value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        converted[key] = value
    return cls(**converted)


def to_mapping(config: Any) -> dict[str, Any]:
    """Return the plain values of a configuration, nested configurations included, ready for JSON or YAML."""
    result: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        result[item.name] = to_mapping(value) if dataclasses.is_dataclass(value) else _plain(value)
    return result
