# SPDX-License-Identifier: Apache-2.0
"""Files for TensorBoard, read back by hand; the log of a training that was killed."""

import json
import struct

import numpy as np
import pytest

from dark3r_ros.errors import OutputError
from dark3r_ros.training.events import EventWriter, crc32c, masked_crc
from dark3r_ros.training.record import LOG, PICTURES, Record


def fields(data):
    """Fields of a protocol buffer as (number, value)."""
    found, place = [], 0

    def varint():
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            found.append((number, varint()))
        elif kind == 2:
            size = varint()
            found.append((number, data[place : place + size]))
            place += size
        else:
            size = {1: 8, 5: 4}[kind]
            found.append((number, struct.unpack('<d' if size == 8 else '<f', data[place : place + size])[0]))
            place += size
    return found


def records(path):
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        (size,) = struct.unpack('<Q', data[place : place + 8])
        assert struct.unpack('<I', data[place + 8 : place + 12])[0] == masked_crc(data[place : place + 8])
        content = data[place + 12 : place + 12 + size]
        assert struct.unpack('<I', data[place + 12 + size : place + 16 + size])[0] == masked_crc(content)
        found.append(dict(fields(content)))
        place += 16 + size
    return found


def test_checksum_has_the_published_values():
    # RFC 3720, B.4, and the check value of the catalogue of parametrised CRC algorithms.
    assert crc32c(b'123456789') == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_scalars_and_pictures_come_back(tmp_path):
    writer = EventWriter(tmp_path)
    writer.scalars(300, {'loss': 0.5, 'rate': -2.0})
    writer.picture(301, 'matches', b'png', 640, 480)
    start, scalars, picture = records(writer.path)
    assert start[3] == b'brain.Event:2' and start[1] > 1.6e9
    values = [dict(fields(value)) for _, value in fields(scalars[5])]
    assert scalars[2] == 300
    assert [(value[1], value[2]) for value in values] == [(b'loss', 0.5), (b'rate', -2.0)]
    image = dict(fields(dict(fields(dict(fields(picture[5]))[1]))[4]))
    assert (image[1], image[2], image[3], image[4]) == (480, 640, 3, b'png')


def test_lines_after_the_checkpoint_are_forgotten(tmp_path):
    log = tmp_path / LOG
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    record = Record(tmp_path, 2)
    record.write(3, {'total': 1.0})
    record.picture(3, np.zeros((4, 6, 3), np.uint8))
    assert [json.loads(line)['step'] for line in log.read_text().splitlines()] == [1, 2, 3]
    assert (tmp_path / PICTURES / '0000003.png').read_bytes()[1:4] == b'PNG'


def test_full_disk_is_told(tmp_path, monkeypatch):
    record = Record(tmp_path, 0)
    (tmp_path / LOG).mkdir()
    with pytest.raises(OutputError, match='cannot write the log'):
        record.write(1, {})
