# SPDX-License-Identifier: Apache-2.0
"""Makes the helper modules of the tests importable."""

import sys
from pathlib import Path

for room in ('cli', 'evaluation', 'storage'):
    sys.path.insert(0, str(Path(__file__).parent.parent / room))
