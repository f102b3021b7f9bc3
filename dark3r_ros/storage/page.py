# SPDX-License-Identifier: Apache-2.0
"""Self-contained HTML pages: one file with its pictures inside, for any browser without a network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

STYLE = """
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:#24292f;background:#fff;margin:0}
main{max-width:1080px;margin:0 auto;padding:24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}
p.sub{color:#57606a;margin:0 0 20px;overflow-wrap:anywhere}
.cards{display:flex;flex-wrap:wrap;gap:12px}
.card{border:1px solid #d8dee4;border-radius:8px;padding:10px 16px;min-width:120px}
.card b{display:block;font-size:22px}.card span{color:#57606a;font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:16px}
img{max-width:100%;border:1px solid #d8dee4;border-radius:8px}
figure{margin:0 0 16px}figcaption{color:#57606a;font-size:13px}figure img{width:100%;image-rendering:pixelated}
table{border-collapse:collapse;width:100%}td,th{border-top:1px solid #d8dee4;padding:6px 8px;vertical-align:top}
th{text-align:left}td:first-child{color:#57606a}.facts td:first-child{width:40%}li{margin:4px 0}
pre{background:#f6f8fa;padding:12px;border-radius:8px;overflow:auto;font-size:12px}
"""


def html_page(title: str, body: str) -> str:
    """A whole page around a body that is HTML already."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n'
    )


def image_tag(png: bytes, caption: str) -> str:
    """Picture that lies in the page itself."""
    return f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table_tag(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table of plain text; without a head its first column names what the second says."""
    titles = ''.join(f'<th>{html.escape(text)}</th>' for text in head)
    lines = ''.join('<tr>' + ''.join(f'<td>{html.escape(text)}</td>' for text in row) + '</tr>' for row in rows)
    return f'<table><tr>{titles}</tr>{lines}</table>' if head else f'<table class="facts">{lines}</table>'
