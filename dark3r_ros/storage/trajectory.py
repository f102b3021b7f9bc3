# SPDX-License-Identifier: Apache-2.0
"""Trajectories as text: `t x y z qx qy qz qw`, camera to world, t in seconds with nine decimals.

Format: Sturm et al., A Benchmark for the Evaluation of RGB-D SLAM Systems, IROS 2012.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from dark3r_ros.errors import DataError
from dark3r_ros.geometry import se3
from dark3r_ros.storage.files import write_text
from dark3r_ros.types import Trajectory

HEADER = '# timestamp tx ty tz qx qy qz qw (camera to world, optical axes)\n'
_NANOSECONDS = 10**9


def format_stamp(stamp_ns: int) -> str:
    """Seconds with nine decimals, exact."""
    sign = '-' if stamp_ns < 0 else ''
    seconds, rest = divmod(abs(int(stamp_ns)), _NANOSECONDS)
    return f'{sign}{seconds}.{rest:09d}'


def parse_stamp(text: str) -> int:
    """Integer nanoseconds of a decimal number of seconds, exact; ValueError when it is none."""
    try:
        value = Decimal(text)
        if not value.is_finite():
            raise ValueError(f'{text!r} is not a time')
        return int((value * _NANOSECONDS).to_integral_value())
    except InvalidOperation as error:
        raise ValueError(f'{text!r} is not a time') from error


def format_tum(trajectory: Trajectory) -> str:
    """Text of a trajectory; twelve significant digits, the same poses give the same bytes."""
    lines = [HEADER]
    for stamp, pose in zip(trajectory.stamps_ns, trajectory.world_from_camera, strict=True):
        values = np.concatenate([pose[:3, 3], se3.quaternion(pose[:3, :3])])
        # Adding zero turns -0.0 into 0.0, whose sign depends on the machine's rounding.
        lines.append(f'{format_stamp(stamp)} ' + ' '.join(f'{value + 0.0:.12g}' for value in values) + '\n')
    return ''.join(lines)


def write_tum(path: Path | str, trajectory: Trajectory) -> None:
    """Write a trajectory; OutputError when the place cannot be written."""
    write_text(path, format_tum(trajectory))


def _parse_line(fields: list[str], where: str) -> tuple[int, list[float]]:
    if len(fields) != 8:
        raise DataError(f'{where}: expected 8 values (t x y z qx qy qz qw), got {len(fields)}')
    try:
        stamp, values = parse_stamp(fields[0]), [float(field) for field in fields[1:]]
    except ValueError as error:
        raise DataError(f'{where}: {error}') from None
    if not np.isfinite(values).all():
        raise DataError(f'{where}: the pose holds NaN or infinity')
    if abs(np.linalg.norm(values[3:]) - 1.0) > 0.1:
        raise DataError(f'{where}: qx qy qz qw = {" ".join(fields[4:])} is not a unit quaternion')
    return stamp, values


def _is_header(fields: list[str]) -> bool:
    return not any(character.isdigit() for character in fields[0])


def read_tum(path: Path | str) -> Trajectory:
    """Read a trajectory; comments (# or %), a header line, commas, semicolons and extra blanks are accepted.

    The poses come back in the order of their stamps. DataError names the file and the line of the first fault.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'it is not a text file'
        raise DataError(f'cannot read the trajectory {path}: {reason}') from error
    rows: list[tuple[int, list[float]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split('#')[0].replace(',', ' ').replace(';', ' ').split()
        if not fields or fields[0].startswith('%') or (not rows and _is_header(fields)):
            continue
        rows.append(_parse_line(fields, f'{path}, line {number}'))
    if not rows:
        raise DataError(f'{path} holds no pose: expected lines of t x y z qx qy qz qw')
    rows.sort(key=lambda row: row[0])
    stamps = np.array([stamp for stamp, _ in rows], dtype=np.int64)
    return Trajectory(stamps, np.stack([se3.from_quaternion(values[3:], values[:3]) for _, values in rows]))
