# SPDX-License-Identifier: Apache-2.0
"""Preparation of 8-bit pictures against golden sizes and pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from dark3r_ros.errors import DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.model.preprocess import crop_geometry, prepare_picture, read_picture


def test_golden_sizes(shared_root):
    rows = json.loads((shared_root / 'reference' / 'mast3r_preprocess' / 'sizes.json').read_text())['rows']
    assert len(rows) == 34
    for row in rows:
        geometry = crop_geometry(*row['in_wh'], row['size'])
        assert list(geometry.resized) == row['resized_wh'], row
        assert list(geometry.box) == row['crop_box_ltrb'], row
        assert list(geometry.size[::-1]) == row['out_hw'], row


@pytest.mark.parametrize('name', ['down', 'up'])
def test_golden_pictures(shared_root, name):
    arrays = np.load(shared_root / 'reference' / 'mast3r_preprocess' / 'examples.npz')
    tensor, geometry = prepare_picture(arrays[f'{name}_in_rgb'], 96)
    np.testing.assert_allclose(tensor.numpy(), arrays[f'{name}_out'], atol=1e-6)
    assert [list(geometry.size[::-1])] == arrays[f'{name}_true_shape'].tolist()


@pytest.mark.parametrize('width, height', [(640, 480), (333, 500), (1031, 517), (700, 700), (60, 81)])
@pytest.mark.parametrize('size', [512, 224])
def test_intrinsics_follow_scale_and_crop(width, height, size):
    """A point of the scene falls on the same place of the picture before and after."""
    camera = Camera(width, height, 500.0, 510.0, width / 2 + 3, height / 2 - 4)
    geometry = crop_geometry(width, height, size)
    after = geometry.camera(camera)
    scale = np.array(geometry.resized) / (width, height)
    for point in np.array([[0.1, -0.2, 1.0], [-0.3, 0.25, 2.0]]):
        before = np.array([camera.fx, camera.fy]) * point[:2] / point[2] + (camera.cx, camera.cy)
        moved = (before + 0.5) * scale - 0.5 - geometry.box[:2]
        got = np.array([after.fx, after.fy]) * point[:2] / point[2] + (after.cx, after.cy)
        np.testing.assert_allclose(got, moved)
    assert (after.width, after.height) == geometry.size


def test_square_pictures_may_stay_square():
    assert crop_geometry(900, 900, allow_square=True).size == (512, 512)
    assert crop_geometry(900, 900).size == (512, 384)


def test_odd_patches_divide_the_crop():
    for size in [(1000, 731), (731, 1000), (333, 500)]:
        geometry = crop_geometry(*size, patch=15)
        assert [side % 15 for side in geometry.size] == [0, 0]
        assert all(0 <= edge <= limit for edge, limit in zip(geometry.box, 2 * geometry.resized, strict=True))


def test_picture_files_are_turned_and_made_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    tag = Image.Exif()
    tag[0x0112] = 6  # camera held on its side: to be turned clockwise by a quarter
    Image.fromarray(rgb).save(tmp_path / 'turned.png', exif=tag)
    np.testing.assert_array_equal(read_picture(tmp_path / 'turned.png'), np.rot90(rgb, -1))
    Image.fromarray(rgb[..., 0]).save(tmp_path / 'grey.png')
    np.testing.assert_array_equal(read_picture(tmp_path / 'grey.png'), rgb[..., :1].repeat(3, 2))
    (tmp_path / 'text.png').write_text('no picture')
    for name, message in (('text.png', 'no readable picture'), ('absent.png', 'no picture at')):
        with pytest.raises(DataError, match=message):
            read_picture(tmp_path / name)


def test_unusable_pictures():
    with pytest.raises(DataError, match='too narrow'):
        crop_geometry(5000, 100)
    with pytest.raises(DataError, match='uint8'):
        prepare_picture(np.zeros((40, 40, 3), np.float32))
    with pytest.raises(DataError, match='uint8'):
        prepare_picture(np.zeros((40, 40), np.uint8))
    with pytest.raises(DataError, match='0x4'):
        crop_geometry(0, 4)
