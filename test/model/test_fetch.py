# SPDX-License-Identifier: Apache-2.0
"""Download against a server of our own that redirects, resumes, breaks off and lies."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dark3r_ros.cli.main import main
from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.model import fetch as fetching
from dark3r_ros.model.fetch import RemoteWeights, describe, fetch, local_path

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Hub(BaseHTTPRequestHandler):
    """`/file` redirects to `/cdn`, stating size and hash; `/cdn` serves ranges."""

    sha256 = hashlib.sha256(CONTENT).hexdigest()
    ranges = True
    stop_after = None

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.redirect()

    def redirect(self):
        self.send_response(302)
        self.send_header('Location', '/cdn')
        if self.sha256:
            self.send_header('X-Linked-ETag', f'"{self.sha256}"')
            self.send_header('X-Linked-Size', str(len(CONTENT)))
        self.send_header('Content-Length', '0')
        self.end_headers()

    def do_GET(self):
        if self.path == '/file':
            self.redirect()
            return
        start = 0
        asked = self.headers.get('Range')
        type(self).requests.append(asked)
        if asked and self.ranges:
            start = int(asked.split('=')[1].rstrip('-'))
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        body = CONTENT[start:]
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.stop_after is None else body[: self.stop_after])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    handler = type('OneHub', (Hub,), {'requests': []})
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f'http://127.0.0.1:{server.server_port}/file'
    monkeypatch.setitem(fetching.REMOTE, 'mast3r-large', RemoteWeights(url, 'terms', noncommercial=True))
    monkeypatch.setenv('DARK3R_WEIGHTS', str(tmp_path / 'weights'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetch_checks_hash_and_leaves_the_licence(hub, tmp_path):
    seen = []
    path = fetch('mast3r-large', accept_noncommercial=True, progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / 'weights' / 'mast3r-large.safetensors'
    assert path.read_bytes() == CONTENT
    assert path.with_suffix('.licence.txt').read_text() == 'terms'
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(seen) == seen
    assert sorted(p.name for p in path.parent.iterdir()) == ['mast3r-large.licence.txt', path.name]
    assert fetch('mast3r-large', accept_noncommercial=True) == path
    assert len(hub.requests) == 1


def test_what_the_hub_states(hub):
    remote = describe(fetching.REMOTE['mast3r-large'].url)
    assert (remote.size, remote.sha256) == (len(CONTENT), Hub.sha256)
    hub.sha256 = 'not-a-hash'
    assert describe(fetching.REMOTE['mast3r-large'].url).sha256 == ''


@pytest.mark.parametrize('ranges', [True, False])
def test_broken_download_goes_on_where_it_stopped(hub, ranges):
    hub.stop_after = 1_000_000
    with pytest.raises(DataError, match='repeat to go on where it stopped'):
        fetch('mast3r-large', accept_noncommercial=True)
    assert local_path('mast3r-large').with_suffix('.part').stat().st_size == 1_000_000
    hub.stop_after = None
    hub.ranges = ranges
    assert fetch('mast3r-large', accept_noncommercial=True).read_bytes() == CONTENT
    assert hub.requests == [None, 'bytes=1000000-']


def test_complete_part_is_not_fetched_again(hub):
    partial = local_path('mast3r-large').with_suffix('.part')
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT)
    assert fetch('mast3r-large', accept_noncommercial=True).read_bytes() == CONTENT
    assert hub.requests == []
    local_path('mast3r-large').rename(partial)
    hub.sha256 = ''
    assert fetch('mast3r-large', accept_noncommercial=True).read_bytes() == CONTENT


def test_wrong_hash_deletes_the_part(hub):
    for expected, stated in (('', '0' * 64), ('f' * 64, Hub.sha256)):
        hub.sha256 = stated
        with pytest.raises(DataError, match='SHA-256') as caught:
            fetch('mast3r-large', accept_noncommercial=True, sha256=expected)
        assert (expected or stated) in str(caught.value)
        assert list(local_path('mast3r-large').parent.iterdir()) == []
    path = fetch('mast3r-large', accept_noncommercial=True, sha256=Hub.sha256.upper())
    assert path.read_bytes() == CONTENT
    # A file that is already there is compared as well, and left alone.
    assert fetch('mast3r-large', accept_noncommercial=True, sha256=Hub.sha256.upper()) == path
    with pytest.raises(DataError, match='has not the SHA-256 ffff'):
        fetch('mast3r-large', accept_noncommercial=True, sha256='F' * 64)
    assert path.read_bytes() == CONTENT


def test_part_longer_than_the_file_is_started_anew(hub):
    partial = local_path('mast3r-large').with_suffix('.part')
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT + b'x')
    assert fetch('mast3r-large', accept_noncommercial=True).read_bytes() == CONTENT


def test_without_consent_nothing_is_fetched(hub, capsys):
    with pytest.raises(ConfigError, match='--accept-noncommercial'):
        fetch('mast3r-large')
    assert main(['weights', 'fetch', 'mast3r-large']) == 2
    assert 'non-commercial' in capsys.readouterr().err
    assert hub.requests == []
    assert not local_path('mast3r-large').parent.exists()


def test_offline_is_one_line_that_names_the_file(monkeypatch, tmp_path, capsys):
    remote = RemoteWeights('http://127.0.0.1:9/model.safetensors', 'terms', noncommercial=True)
    monkeypatch.setitem(fetching.REMOTE, 'mast3r-large', remote)
    status = main(['weights', 'fetch', 'mast3r-large', '--accept-noncommercial', '--folder', str(tmp_path)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert lines[0] == 'terms'
    assert len([line for line in lines if line.startswith('dark3r: error:')]) == 1
    assert str(tmp_path / 'mast3r-large.safetensors') in lines[-1]
    assert remote.url in lines[-1]


def test_folder_that_cannot_be_made(hub, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OutputError, match='cannot write'):
        fetch('mast3r-large', tmp_path / 'file' / 'sub', accept_noncommercial=True)


def test_unknown_name_and_licence_text(capsys):
    with pytest.raises(ConfigError, match='mast3r-large'):
        local_path('mast3r-huge')
    assert main(['weights', 'licence', 'mast3r-large']) == 0
    assert 'NON-COMMERCIAL' in capsys.readouterr().out
