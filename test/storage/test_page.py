# SPDX-License-Identifier: Apache-2.0
"""Pages that need nothing but themselves."""

import base64
from html.parser import HTMLParser

from dark3r_ros.storage.page import html_page, image_tag, table_tag


class _Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ('src', 'href')]

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_carries_its_pictures_and_escapes_text():
    page = html_page('a <b> & c', table_tag(['x < y'], [['<script>', '1']]) + image_tag(b'png', 'say "hi"'))
    seen = _Seen(page)
    assert seen.sources == ['data:image/png;base64,' + base64.b64encode(b'png').decode()]
    assert 'script' not in seen.tags
    assert {'a <b> & c', 'x < y', '<script>'} <= set(seen.text)
    assert seen.tags.count('tr') == 2 and seen.tags.count('th') == 1 and seen.tags.count('td') == 2
