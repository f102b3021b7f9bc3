# SPDX-License-Identifier: Apache-2.0
"""Writing files and folders so that a failure loses nothing that existed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dark3r_ros.errors import OutputError


def output_error(path: Path | str, error: OSError) -> OutputError:
    """One line for an operating system error met while writing to `path`."""
    advice = {
        errno.ENOSPC: 'the disk is full: free space or choose another place',
        errno.EDQUOT: 'the disk quota is used up: free space or choose another place',
        errno.EFBIG: 'the file would exceed the allowed file size: raise the limit or choose another place',
        errno.EROFS: 'the file system is read-only: choose another place',
        errno.EACCES: 'no permission to write there: choose another place',
        errno.EPERM: 'no permission to write there: choose another place',
        errno.ENOTDIR: 'a part of the path is a file, not a folder',
        errno.EEXIST: 'it exists already',
    }.get(error.errno or 0, error.strerror or str(error))
    return OutputError(f'cannot write {path}: {advice}')


def default_mode(kind: int) -> int:
    """Permissions that an ordinary file (0o666) or folder (0o777) would get; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    return kind & ~mask


@contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name beside it and rename it at the end; OutputError when that fails."""
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, 'wb') as stream:
            yield stream
        os.chmod(temporary, default_mode(0o666))
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Replace a text file (UTF-8) as a whole."""
    with replacing(path) as stream:
        stream.write(text.encode())


def write_lines(path: Path | str, lines: Iterable[str]) -> None:
    """Replace a text file (UTF-8) as a whole, its text made piece by piece."""
    with replacing(path) as stream:
        stream.writelines(line.encode() for line in lines)


@contextmanager
def replacing_folder(path: Path | str, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Fill a new folder beside `path`, then put it in its place: all of it or nothing.

    An existing folder is replaced only with `overwrite`, and only when it is empty or holds the file `marker`, so that
    a mistyped path never deletes anything else.
    """
    path = Path(os.path.abspath(path))
    check_target(path, overwrite=overwrite, marker=marker)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
        os.chmod(temporary, default_mode(0o777))
        yield temporary
        swap_in(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_target(path: Path, *, overwrite: bool, marker: str) -> None:
    """Raise OutputError when `path` exists and may not be replaced."""
    try:
        if not path.exists():
            return
        if not path.is_dir():
            raise OutputError(f'cannot write the folder {path}: a file of that name exists')
        if not any(path.iterdir()):
            return
        if not overwrite:
            raise OutputError(f'{path} exists already: choose another name or allow overwriting (--overwrite)')
        if not any(path.glob(marker)):
            raise OutputError(f'{path} holds no {marker}, so it is not replaced: choose another name')
    except OSError as error:
        raise output_error(path, error) from error


def check_writable(path: Path | str) -> None:
    """Raise OutputError when nothing can be created at `path`; parts of it need not exist yet."""
    folder = Path(os.path.abspath(path)).parent
    while not folder.exists():
        folder = folder.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix='.dark3r.', dir=folder))
    except OSError as error:
        raise output_error(path, error) from error


def swap_in(new: Path, path: Path) -> None:
    """Rename folder `new` to `path`; a folder already there is set aside first and deleted last."""
    if not path.exists():
        os.rename(new, path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f'.{path.name}.old.', dir=path.parent))
    old = aside / path.name
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
