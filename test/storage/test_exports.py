# SPDX-License-Identifier: Apache-2.0
"""COLMAP and nerfstudio exports, checked by projecting the points through them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from storage_helpers import CAMERA, make_reconstruction

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.storage.colmap import colmap_camera, write_colmap
from dark3r_ros.storage.nerfstudio import write_transforms

PINHOLE = Camera(64, 48, 50.0, 51.0, 31.2, 23.7)
CAMERAS = {
    'PINHOLE': PINHOLE,
    'OPENCV': CAMERA,
    'FULL_OPENCV': replace(
        CAMERA, distortion_model='rational_polynomial', distortion=(0.1, 0.02, 0.001, 0.002, 0.01, 0.2, 0.03, 0.01)
    ),
    'OPENCV_FISHEYE': replace(CAMERA, distortion_model='equidistant', distortion=(0.02, -0.01, 0.003, -0.001)),
}
THIRD_RADIAL = replace(CAMERA, distortion=(0.1, -0.05, 0.001, -0.002, 0.03))
THIN_PRISM = replace(
    CAMERA, distortion_model='rational_polynomial', distortion=(0.1, 0.02, 0, 0, 0, 0, 0, 0, 0.01, 0, 0.02, 0)
)


def test_models():
    assert {name: colmap_camera(camera)[0] for name, camera in CAMERAS.items()} == {name: name for name in CAMERAS}
    assert colmap_camera(THIRD_RADIAL)[0] == 'FULL_OPENCV'
    assert colmap_camera(THIN_PRISM)[0] == 'PINHOLE'


@pytest.mark.parametrize('camera', [*CAMERAS.values(), THIRD_RADIAL, THIN_PRISM])
def test_pycolmap_reads_it_with_the_same_reprojection_errors(tmp_path, camera):
    pycolmap = pytest.importorskip('pycolmap')
    truth = make_reconstruction(camera)
    observations = truth.observations
    noise = np.random.default_rng(3).normal(0, 0.5, observations.pixels.shape)
    noisy = replace(truth, observations=replace(observations, pixels=observations.pixels + noise))
    write_colmap(tmp_path, noisy)
    model = pycolmap.Reconstruction(str(tmp_path))
    posed = [frame for frame in truth.frames if frame.world_from_camera is not None]
    assert sorted(image.name for image in model.images.values()) == [frame.name for frame in posed]
    assert len(model.points3D) == len(observations.points)
    errors = []
    for k in range(len(observations.pixels)):
        image = model.images[observations.frame_index[k] + 1]
        point = model.points3D[observations.point_index[k] + 1]
        seen = [item for item in image.points2D if item.point3D_id == observations.point_index[k] + 1]
        assert len(seen) == 1
        errors.append(image.project_point(point.xyz) - seen[0].xy)
        np.testing.assert_array_equal(point.color, observations.colors[observations.point_index[k]])
    if camera is THIN_PRISM:
        np.testing.assert_allclose(errors, -noise, atol=0.3)  # undistorted pixels stretch the noise a little
    else:
        np.testing.assert_allclose(errors, -noise, atol=1e-6)
        expected = np.linalg.norm(noise[observations.point_index == 0], axis=1).mean()
        assert model.points3D[1].error == pytest.approx(expected, rel=1e-4)


def project_with_nerfstudio(data, index, points):
    """Projection as nerfstudio's documentation states it: OpenGL axes, pixel centres at half integers."""
    world_from_opengl = np.array(data['frames'][index]['transform_matrix'])
    local = np.linalg.inv(world_from_opengl) @ np.column_stack([points, np.ones(len(points))]).T
    x, y = local[0] / -local[2], -local[1] / -local[2]
    k1, k2, k3, k4, p1, p2 = (data.get(key, 0.0) for key in ('k1', 'k2', 'k3', 'k4', 'p1', 'p2'))
    r2 = x**2 + y**2
    if data['camera_model'] == 'OPENCV_FISHEYE':
        r = np.sqrt(r2)
        theta = np.arctan(r)
        scale = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8) / r
        u, v = x * scale, y * scale
    else:
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
        u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
        v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    return np.column_stack([data['fl_x'] * u + data['cx'] - 0.5, data['fl_y'] * v + data['cy'] - 0.5])


@pytest.mark.parametrize('name', [*CAMERAS, 'THIRD_RADIAL'])
def test_nerfstudio_projects_to_the_same_pixels(tmp_path, name):
    truth = make_reconstruction({**CAMERAS, 'THIRD_RADIAL': THIRD_RADIAL}[name])
    write_transforms(tmp_path / 'transforms.json', truth)
    data = json.loads((tmp_path / 'transforms.json').read_text())
    observations = truth.observations
    posed = [index for index, frame in enumerate(truth.frames) if frame.world_from_camera is not None]
    assert [frame['file_path'] for frame in data['frames']] == [truth.frames[index].name for index in posed]
    tolerance = data.get('distortion_fit_error_px', 0.0) * 1.5 + 1e-9
    assert tolerance < 0.05
    for entry, index in enumerate(posed):
        mine = observations.frame_index == index
        inside = (np.abs(observations.pixels[mine] - (32, 24)) < (32, 24)).all(axis=1)
        pixels = project_with_nerfstudio(data, entry, observations.points[observations.point_index[mine]])
        np.testing.assert_allclose(pixels[inside], observations.pixels[mine][inside], atol=tolerance)
