# SPDX-License-Identifier: Apache-2.0
"""ROS parameters declared from the configuration dataclasses, and read back into them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from dark3r_ros.config import Config, from_mapping, to_mapping
from dark3r_ros.errors import ConfigError

T = TypeVar('T', bound=Config)

# Bounds of ROS integer and floating-point parameters, used where a setting has only one.
_INTEGER_LIMIT = 2**63 - 1
_FLOAT_LIMIT = 1.7e308

_FOREIGN = ('use_sim_time', 'start_type_description_service', 'qos_overrides.')


def parameter_name(prefix: str, field: str) -> str:
    """Dotted name of a field."""
    return f'{prefix}.{field}' if prefix else field


def description(item: dataclasses.Field[Any]) -> str:
    """Meaning, unit and choices of a field in one line."""
    text = str(item.metadata.get('doc', ''))
    if item.metadata.get('unit'):
        text += f' Unit: {item.metadata["unit"]}.'
    if item.metadata.get('choices'):
        text += f' One of: {", ".join(map(str, item.metadata["choices"]))}.'
    return text


def descriptor(item: dataclasses.Field[Any], kind: type) -> ParameterDescriptor:
    """Descriptor with range, description and whether it may change at run time."""
    result = ParameterDescriptor(
        name=item.name, description=description(item), read_only=not item.metadata.get('dynamic', False)
    )
    low, high = item.metadata.get('minimum'), item.metadata.get('maximum')
    if low is None and high is None:
        return result
    if kind is int:
        bounds = (
            -_INTEGER_LIMIT if low is None else math.ceil(low),
            _INTEGER_LIMIT if high is None else math.floor(high),
        )
        result.integer_range = [IntegerRange(from_value=bounds[0], to_value=bounds[1], step=0)]
    elif kind is float:
        bounds_f = (-_FLOAT_LIMIT if low is None else float(low), _FLOAT_LIMIT if high is None else float(high))
        result.floating_point_range = [FloatingPointRange(from_value=bounds_f[0], to_value=bounds_f[1], step=0.0)]
    return result


def _declarable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def declare(node: Node, groups: Mapping[str, type[Config]]) -> None:
    """Declare every field of every group; ConfigError on a given value of the wrong type or out of its range."""
    for prefix, cls in groups.items():
        hints = get_type_hints(cls)
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            name = parameter_name(prefix, item.name)
            try:
                node.declare_parameter(name, _declarable(item.default), descriptor(item, hints[item.name]))
            except InvalidParameterTypeException as error:
                hint = ' (write 5.0 rather than 5)' if hints[item.name] is float else ''
                raise ConfigError(f'parameter {name} must be {hints[item.name].__name__}{hint}: {error}') from error
            except InvalidParameterValueException as error:
                raise ConfigError(f'parameter {name}: {error}') from error


def refuse_unknown(given: Iterable[str], groups: Mapping[str, type[Config]]) -> None:
    """Raise ConfigError when a parameter was given that no group declares."""
    known = {
        parameter_name(prefix, item.name)
        for prefix, cls in groups.items()
        for item in dataclasses.fields(cls)  # type: ignore[arg-type]
    }
    unknown = sorted(name for name in given if name not in known and not name.startswith(_FOREIGN))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.4)
        hint = f'did you mean {" or ".join(near)}?' if near else '`ros2 param list` shows those of the running node'
        raise ConfigError(f'unknown parameter {unknown[0]!r}; {hint}')


def given_names(node: Node) -> tuple[str, ...]:
    """Names of the parameters that the user gave by command line or file."""
    # rclpy drops overrides of undeclared parameters without a word and offers no public view of them.
    return tuple(getattr(node, '_parameter_overrides', {}))


def read(node: Node, prefix: str, cls: type[T]) -> T:
    """Build a configuration from the current parameters; ConfigError when their combination is refused."""
    values = {
        item.name: node.get_parameter(parameter_name(prefix, item.name)).value
        for item in dataclasses.fields(cls)  # type: ignore[arg-type]
    }
    return from_mapping(cls, values)


def accept_changes(
    node: Node, prefix: str, cls: type[T], on_change: Callable[[T], None]
) -> Callable[[list[Parameter[Any]]], SetParametersResult]:
    """Validate every change of a group as a whole before it happens, and hand the new configuration on."""

    def callback(changes: list[Parameter[Any]]) -> SetParametersResult:
        own = {
            change.name[len(prefix) + 1 if prefix else 0 :]: change.value
            for change in changes
            if not prefix or change.name.startswith(f'{prefix}.')
        }
        fields = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        own = {name: value for name, value in own.items() if name in fields}
        if not own:
            return SetParametersResult(successful=True)
        try:
            changed = from_mapping(cls, {**to_mapping(read(node, prefix, cls)), **own})
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        on_change(changed)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(callback)
    return callback
