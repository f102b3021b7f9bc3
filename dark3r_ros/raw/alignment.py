# SPDX-License-Identifier: Apache-2.0
"""Where 10, 12 or 14 significant bits lie in 16: at the low end (LSB) or at the high end (MSB).

ROS does not say. An MSB-aligned image has low bits that never change; that is looked for over the first frames and
then kept, because a change of scale in the middle of a recording would void every noise figure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError

# Frames with any variation that are looked at before the alignment is final.
LEARNING_FRAMES = 5


class BitAlignment:
    """Finds out by how many bits 16-bit values must be shifted down.

    Parameters
    ----------
    significant_bits: bits that the sensor delivers, 8..16, or 0 to find out.
    alignment: `lsb`, `msb` or `auto`. `msb` without the number of bits learns that number from the data.

    """

    def __init__(self, significant_bits: int = 0, alignment: str = 'auto') -> None:
        self._bits = significant_bits
        self._alignment = alignment
        self._varying = 0
        self._seen = 0
        self._shift = 0
        self.decided = False
        if alignment == 'lsb' or significant_bits == 16:
            self.decided = True
        elif alignment == 'msb' and significant_bits:
            self._shift = 16 - significant_bits
            self.decided = True

    @property
    def shift(self) -> int:
        """Bits to shift down, as far as known by now."""
        return self._shift

    @property
    def significant_bits(self) -> int:
        """Bits of the sensor: as stated, or as found for MSB alignment; 0 while unknown."""
        if self._bits:
            return self._bits
        return 16 - self._shift if self._shift else 0

    def learn(self, values: NDArray[np.uint16]) -> None:
        """Look at one more frame; does nothing once decided or when the frame is constant."""
        if self.decided:
            return
        varying = int(np.bitwise_or.reduce(values ^ values[0, 0], axis=None))
        if not varying:
            return
        self._varying |= varying
        self._seen += 1
        constant = (self._varying & -self._varying).bit_length() - 1
        if self._bits:
            # The number of bits is known: values are MSB-aligned only if all bits below stand still.
            self._shift = 16 - self._bits if constant >= 16 - self._bits else 0
        else:
            # One still bit alone is as likely an even digital gain; sensors have 14 bits or fewer.
            self._shift = constant if 2 <= constant <= 8 else 0
        self.decided = self._seen >= LEARNING_FRAMES or self._shift == 0

    def contradicted_by(self, values: NDArray[np.uint16]) -> bool:
        """Whether bits are set below the shift, so that shifting would lose information."""
        return bool(self._shift and int(np.bitwise_or.reduce(values, axis=None)) & ((1 << self._shift) - 1))


def check_bits(significant_bits: int) -> None:
    """Raise ConfigError unless 0 (unknown) or 8..16."""
    if significant_bits and not 8 <= significant_bits <= 16:
        raise ConfigError(f'significant_bits = {significant_bits} must be 0 (find out) or 8..16')
