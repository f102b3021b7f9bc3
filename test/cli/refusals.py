# SPDX-License-Identifier: Apache-2.0
"""What a refused command leaves behind."""


def error_line(capsys) -> str:
    """The one line a refused command leaves."""
    text = capsys.readouterr().err.strip()
    lines = [line for line in text.splitlines() if not line.startswith('dark3r: warning')]
    assert len(lines) == 1, text
    assert lines[0].startswith('dark3r: error: ')
    return lines[0]
