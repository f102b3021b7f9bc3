# SPDX-License-Identifier: Apache-2.0
"""The one exception tree of the package.

Every message says what was wrong, where, and what to do about it. A command turns any `Dark3rError` into one
line on standard error and exit status 2; the ROS node turns it into a status and a diagnostic.
"""


class Dark3rError(Exception):
    """Base of all errors that a user can act upon."""


class ConfigError(Dark3rError):
    """A setting is unknown, of the wrong type or out of its range."""


class DataError(Dark3rError):
    """Input data is missing, empty, corrupt, truncated or contradicts itself."""


class EncodingError(DataError):
    """An image encoding that carries no usable raw mosaic (unknown, packed, compressed)."""


class CalibrationError(DataError):
    """Camera intrinsics are missing, zero or do not belong to the image."""


class OutputError(Dark3rError):
    """A result cannot be written (permissions, full disk, existing file)."""


class DependencyError(Dark3rError):
    """An optional package is missing; the message names the extra to install."""


class ReconstructionError(Dark3rError):
    """The images do not support a reconstruction (no overlap, no parallax, too dark)."""
