# SPDX-License-Identifier: Apache-2.0
"""Reading of the architecture that a public checkpoint states as a Python constructor call.

The call is parsed into plain values and never evaluated.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

from dark3r_ros.errors import DataError

_INFINITY = math.inf
# Stated by the published training commands; other modes would need other output activations.
_MODES = {
    'depth_mode': ('exp', -_INFINITY, _INFINITY),
    'conf_mode': ('exp', 1, _INFINITY),
    'desc_conf_mode': ('exp', 0, _INFINITY),
    'two_confs': True,
    'desc_mode': 'norm',
    'head_type': 'catmlp+dpt',
}
_SIZES = ('enc_embed_dim', 'enc_depth', 'enc_num_heads', 'dec_embed_dim', 'dec_depth', 'dec_num_heads', 'patch_size')
_IRRELEVANT = ('img_size', 'patch_embed_cls', 'landscape_only', 'freeze')
_CLASS = 'AsymmetricMASt3R'


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, text)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_literal(item, text) for item in node.elts)
    raise DataError(f'the checkpoint states its architecture with something that is no plain value: {text[:120]!r}')


def parse_constructor(text: str) -> tuple[str, dict[str, Any]]:
    """Split `Name(key=value, ..)` into its name and plain values.

    Values are numbers (inf included), strings, None, booleans and tuples of those. Raises DataError for anything else.
    """
    try:
        call = ast.parse(text.strip(), mode='eval').body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f'the checkpoint states no readable architecture: {text[:120]!r}') from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise DataError(f'the checkpoint states no architecture of the form Name(key=value, ..): {text[:120]!r}')
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise DataError(f'the checkpoint states its architecture with unpacked arguments: {text[:120]!r}')
        values[keyword.arg] = _literal(keyword.value, text)
    return call.func.id, values


def stated_sizes(text: str) -> dict[str, Any]:
    """Fields of `NetworkConfig` that the constructor call of a checkpoint states.

    Raises DataError when it describes another kind of network.
    """
    name, values = parse_constructor(text)
    if name != _CLASS:
        raise DataError(f'the checkpoint is of architecture {name}; only {_CLASS} is supported')
    for key, expected in _MODES.items():
        if key in values and values[key] != expected:
            raise DataError(f'the checkpoint has {key}={values[key]!r}; only {expected!r} is supported')
    known = {*_MODES, *_SIZES, *_IRRELEVANT, 'pos_embed', 'output_mode', 'mlp_ratio'}
    unknown = sorted(set(values) - known)
    if unknown:
        raise DataError(f'the checkpoint has the unknown architecture setting {unknown[0]}={values[unknown[0]]!r}')
    sizes = {key: values[key] for key in _SIZES if key in values}
    if 'mlp_ratio' in values:
        sizes['mlp_ratio'] = float(values['mlp_ratio'])
    return {**sizes, **_embedded_numbers(values)}


def _embedded_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, pattern, target, kind in (
        ('pos_embed', r'RoPE(\d+(?:\.\d+)?)', 'rope_base', float),
        ('output_mode', r'pts3d\+desc(\d+)', 'desc_dim', int),
    ):
        if key in values:
            match = re.fullmatch(pattern, str(values[key]))
            if match is None:
                raise DataError(f'the checkpoint has {key}={values[key]!r}; expected something like {pattern}')
            result[target] = kind(match[1])
    return result
