# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from dark3r_ros.errors import CalibrationError
from dark3r_ros.geometry.camera import Camera

MODELS = [
    ('none', ()),
    ('plumb_bob', (-0.3, 0.12, 0.001, -0.002, -0.02)),
    ('rational_polynomial', (0.6, 0.1, 0.001, -0.0005, 0.005, 0.9, 0.25, 0.02)),
    ('equidistant', (0.05, 0.01, -0.003, 0.001)),
]


@pytest.mark.parametrize(('model', 'coefficients'), MODELS)
def test_unproject_inverts_project_to_the_corners(model, coefficients):
    camera = Camera(640, 480, 420.0, 430.0, 315.0, 245.0, model, coefficients)
    x, y = np.meshgrid([0, 160, 320, 500, 639], [0, 100, 240, 479])
    pixels = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    rays = camera.unproject(pixels)
    again = camera.project(np.column_stack([rays, np.ones(len(rays))]) * 3.7)
    np.testing.assert_allclose(again, pixels, atol=1e-6)


@pytest.mark.parametrize(('model', 'coefficients'), MODELS)
def test_no_points_give_no_points(model, coefficients):
    camera = Camera(640, 480, 420.0, 430.0, 315.0, 245.0, model, coefficients)
    assert camera.project(np.zeros((0, 3))).shape == (0, 2)
    assert camera.unproject(np.zeros((0, 2))).shape == (0, 2)
    assert camera.rays(np.zeros((0, 2))).shape == (0, 3)


def test_a_lens_model_that_folds_over_is_survived():
    # d(r + k1 r^3)/dr = 0 at r = 1/sqrt(3): the pixel at that radius is where the Jacobian is singular.
    camera = Camera(640, 480, 400.0, 400.0, 320.0, 240.0, 'plumb_bob', (-1.0, 0.0, 0.0, 0.0, 0.0))
    edge = 320.0 + 400.0 * 2.0 / (3.0 * np.sqrt(3.0))
    found = camera.unproject([[edge, 240.0], [edge + 40.0, 240.0], [340.0, 240.0]])
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(1.0 / np.sqrt(3.0), abs=1e-3)
    np.testing.assert_allclose(camera.project([[*found[2], 1.0]]), [[340.0, 240.0]], atol=1e-9)


def test_plumb_bob_follows_its_formula():
    k1, k2, p1, p2, k3 = 0.1, -0.05, 0.002, -0.003, 0.01
    camera = Camera(640, 480, 400.0, 410.0, 320.0, 240.0, 'plumb_bob', (k1, k2, p1, p2, k3))
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    expected_x = 400 * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + 320
    expected_y = 410 * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + 240
    np.testing.assert_allclose(camera.project([[2 * x, 2 * y, 2.0]]), [[expected_x, expected_y]], atol=1e-9)


def test_binning_keeps_the_rays_of_block_centres():
    camera = Camera(1280, 960, 900.0, 905.0, 633.3, 481.7)
    binned = camera.binned(4)
    assert (binned.width, binned.height) == (320, 240)
    block_centre = np.array([[4 * 17 + 1.5, 4 * 29 + 1.5]])
    np.testing.assert_allclose(binned.unproject([[17, 29]]), camera.unproject(block_centre), atol=1e-12)


def test_cropping_keeps_the_rays():
    camera = Camera(1280, 960, 900.0, 905.0, 633.3, 481.7)
    cropped = camera.cropped(100, 51, 640, 480)
    np.testing.assert_allclose(cropped.unproject([[10, 20]]), camera.unproject([[110, 71]]), atol=1e-12)


@pytest.mark.parametrize(
    ('changes', 'word'),
    [
        ({'fx': 0.0}, 'camera matrix'),
        ({'cy': float('nan')}, 'camera matrix'),
        ({'width': 0}, 'size'),
        ({'distortion_model': 'wavy'}, 'wavy'),
        ({'distortion_model': 'plumb_bob', 'distortion': (1.0,)}, 'coefficients'),
    ],
)
def test_unusable_calibration_is_one_clear_error(changes, word):
    values = {'width': 64, 'height': 48, 'fx': 50.0, 'fy': 50.0, 'cx': 32.0, 'cy': 24.0, **changes}
    with pytest.raises(CalibrationError, match=word):
        Camera(**values)
