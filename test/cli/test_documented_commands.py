# SPDX-License-Identifier: Apache-2.0
"""Every `dark3r` command that README.md and docs/ tell to type is one that the programme takes."""

import re
import shlex
from pathlib import Path

import pytest

from dark3r_ros.cli.main import available_commands, build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r'```bash\n(.*?)```', page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    return [line.strip() for line in lines if line.strip().startswith('dark3r ')]


@pytest.mark.parametrize('page', [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_documented_commands_are_understood(page):
    for line in commands(page):
        _, name, *arguments = shlex.split(line, comments=True)
        if name.startswith('-'):
            continue  # options of the programme itself
        assert name in available_commands(), line
        build_parser(name).parse_args(arguments)  # raises for what it does not know


def test_commands_are_found_at_all():
    assert sum(len(commands(page)) for page in PAGES) > 20
