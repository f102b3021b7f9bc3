# SPDX-License-Identifier: Apache-2.0
"""Download of weights that we may not ship: by HTTP, resumable, checked, with their licence beside them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dark3r_ros.errors import ConfigError, DataError, OutputError

_BLOCK = 1 << 20
_TIMEOUT_S = 30.0

NONCOMMERCIAL = """\
The MASt3R weights are the work of Naver Corporation, licensed CC BY-NC-SA 4.0
(https://creativecommons.org/licenses/by-nc-sa/4.0/).
You may use, share and adapt them for NON-COMMERCIAL purposes only, with attribution, and what you adapt from them
(fine-tuned or distilled weights) must carry the same licence. The terms of the data sets they were trained on apply
as well. They are no part of dark3r_ros, whose own code is Apache-2.0.
Source: https://github.com/naver/mast3r
"""


@dataclass(frozen=True)
class RemoteWeights:
    """A file on the model hub.

    Attributes
    ----------
    url: where it is. licence: what the user must know and accept. noncommercial: whether commercial use is forbidden.

    """

    url: str
    licence: str
    noncommercial: bool


REMOTE: dict[str, RemoteWeights] = {
    'mast3r-large': RemoteWeights(
        'https://huggingface.co/naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric/resolve/main/model.safetensors',
        NONCOMMERCIAL,
        noncommercial=True,
    )
}


@dataclass(frozen=True)
class RemoteFile:
    """What the hub says of a file: size in bytes, or 0, and SHA-256, or empty."""

    size: int
    sha256: str


def default_folder() -> Path:
    """Folder of fetched weights: $DARK3R_WEIGHTS, else the user's cache."""
    chosen = os.environ.get('DARK3R_WEIGHTS')
    if chosen:
        return Path(chosen)
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'dark3r' / 'weights'


def local_path(name: str, folder: Path | None = None) -> Path:
    """Where the named weights lie, or have to be placed by hand; ConfigError lists the known names."""
    if name not in REMOTE:
        raise ConfigError(f'unknown weights {name!r}; known: {", ".join(REMOTE)}')
    return (folder or default_folder()) / f'{name}.safetensors'


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Redirects are answers here: the hub states size and hash in them."""


def describe(url: str) -> RemoteFile:
    """Ask the hub for size and SHA-256 of a large file, which it states in the headers of its first answer."""
    opener = urllib.request.build_opener(_NoRedirect)
    request = urllib.request.Request(url, method='HEAD', headers={'Accept-Encoding': 'identity'})
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        if not 300 <= error.code < 400:
            raise
        headers = error.headers
    tag = (headers.get('X-Linked-ETag') or '').strip('"').lower()
    size = headers.get('X-Linked-Size') or '0'
    is_hash = len(tag) == 64 and set(tag) <= set('0123456789abcdef')
    return RemoteFile(int(size) if size.isdigit() else 0, tag if is_hash else '')


def fetch(
    name: str,
    folder: Path | None = None,
    *,
    accept_noncommercial: bool = False,
    sha256: str = '',
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download weights, or find them complete.

    A broken download goes on where it stopped. The hash is checked against `sha256`, else against the one that the hub
    states; the licence is written beside the file.

    Parameters
    ----------
    name: one of `REMOTE`. folder: target, `default_folder()` when None.
    accept_noncommercial: the user's consent, without which nothing is fetched.
    sha256: expected hash where the user knows it.
    progress: called with bytes so far and in all (0 when unknown).

    Raises ConfigError without consent, DataError when the network or the file fails, OutputError when the folder does.

    """
    target = local_path(name, folder)
    remote = REMOTE[name]
    if remote.noncommercial and not accept_noncommercial:
        raise ConfigError(
            f'{name} is licensed for non-commercial use only (CC BY-NC-SA 4.0): read `dark3r weights licence {name}`, '
            'then repeat with --accept-noncommercial'
        )
    if target.exists():
        if sha256 and file_hash(target) != sha256.lower():
            raise DataError(f'{target} is there, but has not the SHA-256 {sha256.lower()}: delete it to fetch it again')
        return target
    try:
        expected = describe(remote.url)
        partial = target.with_suffix('.part')
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(remote.url, partial, expected.size, progress)
        check_hash(partial, sha256.lower() or expected.sha256)
        target.with_suffix('.licence.txt').write_text(remote.licence, encoding='utf-8')
        partial.replace(target)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, 'reason', None) or error
        raise DataError(
            f'cannot fetch {name} ({reason}): repeat to go on where it stopped, or download {remote.url} by hand '
            f'and place it at {target}'
        ) from error
    except OSError as error:
        raise OutputError(f'cannot write {target}: {error.strerror or error}') from error
    return target


def _download(url: str, partial: Path, size: int, progress: Callable[[int, int], None] | None) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    if size and done > size:
        partial.unlink()
        done = 0
    if size and done == size:
        return
    headers = {'Accept-Encoding': 'identity', **({'Range': f'bytes={done}-'} if done else {})}
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(
                urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
            )
        except urllib.error.HTTPError as error:
            # The part already holds everything, or belongs to another version of the file: the hash will tell.
            if error.code == 416 and done:
                return
            raise
        if answer.status != 206:
            done = 0
        total = size or done + int(answer.headers.get('Content-Length') or 0)
        with partial.open('ab' if done else 'wb') as stream:
            while block := answer.read(_BLOCK):
                stream.write(block)
                done += len(block)
                if progress:
                    progress(done, total)
    if total and done < total:
        raise ConnectionError(f'the connection ended after {done} of {total} bytes')


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path: Path, sha256: str) -> None:
    """Compare the SHA-256 of a downloaded part with the expected one; a wrong part is deleted, DataError raised."""
    if not sha256:
        return
    found = file_hash(path)
    if found != sha256:
        path.unlink()
        raise DataError(f'the download has SHA-256 {found}, expected {sha256}: it was deleted, fetch it again')
