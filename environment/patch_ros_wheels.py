# SPDX-License-Identifier: Apache-2.0
"""Point the CMake files of ROS wheels at this environment's Python and NumPy headers.

The wheels carry the include folders of the machine that built them; CMake refuses targets whose include folders do
not exist. Running this again changes nothing.
"""

import os
import re
import sys
import sysconfig
from pathlib import Path

PYTHON_INCLUDE = re.compile(r'/[^;"\s]*/include/python3\.\d+\b')
NUMPY_INCLUDE = re.compile(r'/[^;"\s]*/site-packages/numpy/_?core/include')


def patch(text: str, python_include: str, numpy_include: str) -> str:
    """Return `text` with absolute Python and NumPy include folders replaced."""
    text = NUMPY_INCLUDE.sub(lambda _: numpy_include, text)
    return PYTHON_INCLUDE.sub(lambda _: python_include, text)


def patch_prefix(prefix: Path, python_include: str, numpy_include: str) -> int:
    """Rewrite every exported target file under `prefix`/share; return how many changed."""
    changed = 0
    for path in prefix.glob('share/*/cmake/*Export*.cmake'):
        old = path.read_text(encoding='utf-8')
        new = patch(old, python_include, numpy_include)
        if new != old:
            # A new file, not a write in place: installers may have hard-linked this one to their cache.
            temporary = path.with_suffix('.tmp')
            temporary.write_text(new, encoding='utf-8')
            os.replace(temporary, path)
            changed += 1
    return changed


def main() -> int:
    """Patch the running interpreter's environment."""
    import numpy

    include = sysconfig.get_path('include')
    changed = patch_prefix(Path(sys.prefix), include, numpy.get_include())
    print(f'{changed} CMake files pointed at {include}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
