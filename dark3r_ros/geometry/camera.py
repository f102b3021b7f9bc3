# SPDX-License-Identifier: Apache-2.0
"""Pinhole camera with the distortion models of ROS.

The centre of the top-left pixel is (0, 0); axes of the optical frame are x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dark3r_ros.errors import CalibrationError

Array = NDArray[np.float64]

# ROS name -> numbers of coefficients that the model may carry (sensor_msgs/distortion_models, REP 104).
DISTORTION_MODELS: dict[str, tuple[int, ...]] = {
    'none': (0,),
    'plumb_bob': (4, 5),
    'rational_polynomial': (8, 12, 14),
    'equidistant': (4,),
}


@dataclass(frozen=True)
class Camera:
    """Intrinsics of one camera at one image size.

    Attributes
    ----------
    width, height: image size in pixels.
    fx, fy, cx, cy: focal lengths and principal point in pixels, the centre of the top-left pixel being (0, 0).
    distortion_model: one of `DISTORTION_MODELS`.
    distortion: its coefficients in OpenCV's order, dimensionless (independent of the image size).

    Raises CalibrationError when the size or focal length is not positive or the model is unknown.

    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion_model: str = 'none'
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise CalibrationError(f'camera size {self.width}x{self.height} is not positive')
        values = np.array([self.fx, self.fy, self.cx, self.cy, *self.distortion], dtype=np.float64)
        if not np.isfinite(values).all() or self.fx <= 0 or self.fy <= 0:
            raise CalibrationError(
                f'camera matrix is not usable (fx={self.fx}, fy={self.fy}, cx={self.cx}, cy={self.cy}): '
                'calibrate the camera and publish its CameraInfo'
            )
        counts = DISTORTION_MODELS.get(self.distortion_model)
        if counts is None:
            raise CalibrationError(
                f'unknown distortion model {self.distortion_model!r}; known: {", ".join(DISTORTION_MODELS)}'
            )
        if len(self.distortion) not in counts:
            raise CalibrationError(
                f'{self.distortion_model} takes {" or ".join(map(str, counts))} coefficients, '
                f'got {len(self.distortion)}'
            )

    @property
    def matrix(self) -> Array:
        """Camera matrix (3, 3)."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def distorted(self) -> bool:
        """Whether any distortion coefficient is not zero."""
        return self.distortion_model != 'none' and any(self.distortion)

    def binned(self, factor: int) -> Camera:
        """Intrinsics after averaging `factor` x `factor` pixels: c' = (c + 0.5)/n - 0.5, f' = f/n.

        Rows and columns that do not fill a whole block are cut off at the right and the bottom.
        """
        return replace(
            self,
            width=self.width // factor,
            height=self.height // factor,
            fx=self.fx / factor,
            fy=self.fy / factor,
            cx=(self.cx + 0.5) / factor - 0.5,
            cy=(self.cy + 0.5) / factor - 0.5,
        )

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """Intrinsics of the region of interest whose top-left pixel is (x, y)."""
        return replace(self, width=width, height=height, cx=self.cx - x, cy=self.cy - y)

    def project(self, points: ArrayLike) -> Array:
        """Pixels (N, 2) of points (N, 3) in the optical frame, in metres or any unit; z must be positive."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        if not self.distorted:
            normalised = points[:, :2] / points[:, 2:]
            return normalised * (self.fx, self.fy) + (self.cx, self.cy)
        if not len(points):  # OpenCV answers nothing to nothing
            return np.zeros((0, 2))
        zero = np.zeros(3)
        coefficients = np.array(self.distortion)
        if self.distortion_model == 'equidistant':
            pixels, _ = cv2.fisheye.projectPoints(points[:, None], zero, zero, self.matrix, coefficients)
        else:
            pixels, _ = cv2.projectPoints(points[:, None], zero, zero, self.matrix, coefficients)
        return np.asarray(pixels, dtype=np.float64).reshape(-1, 2)

    def unproject(self, pixels: ArrayLike) -> Array:
        """Undistorted normalised coordinates (N, 2), that is x/z and y/z, of pixels (N, 2)."""
        pixels = np.asarray(pixels, dtype=np.float64).reshape(-1, 2)
        if not self.distorted:
            return (pixels - (self.cx, self.cy)) / (self.fx, self.fy)
        if not len(pixels):
            return np.zeros((0, 2))
        rays = self._undistorted_start(pixels)
        for _ in range(20):
            step = self._newton_step(rays, pixels)
            rays = rays + step
            if not np.abs(step).max(initial=0.0) > 1e-12:
                break
        return rays

    def _undistorted_start(self, pixels: Array) -> Array:
        """OpenCV's few fixed-point steps, or no correction at all where they ran away."""
        coefficients = np.array(self.distortion)
        if self.distortion_model == 'equidistant':
            start = cv2.fisheye.undistortPoints(pixels[:, None], self.matrix, coefficients)
        else:
            start = cv2.undistortPoints(pixels[:, None], self.matrix, coefficients)
        start = np.asarray(start, dtype=np.float64).reshape(-1, 2)
        plain = (pixels - (self.cx, self.cy)) / (self.fx, self.fy)
        usable = np.isfinite(start).all(axis=1) & (np.abs(start - plain).max(axis=1) < 2.0)
        return np.where(usable[:, None], start, plain)

    def _newton_step(self, rays: Array, pixels: Array) -> Array:
        """Correction (N, 2) of normalised coordinates; OpenCV's own steps leave 0.1 px in corners of wide lenses."""
        shift = 1e-6
        points = np.concatenate([rays, rays + (shift, 0.0), rays + (0.0, shift)])
        here, right, down = np.split(self.project(np.column_stack([points, np.ones(len(points))])), 3)
        jacobian = np.stack([right - here, down - here], axis=2) / shift
        (a, b), (c, d) = jacobian[:, 0].T, jacobian[:, 1].T
        determinant = a * d - b * c
        # Where the lens model folds over, no step leads anywhere.
        inverse = np.divide(1.0, determinant, np.zeros_like(a), where=np.abs(determinant) > 1e-9 * self.fx * self.fy)
        x, y = (pixels - here).T * inverse
        return np.column_stack([d * x - b * y, a * y - c * x])

    def rays(self, pixels: ArrayLike) -> Array:
        """Unit direction vectors (N, 3) in the optical frame of pixels (N, 2)."""
        normalised = self.unproject(pixels)
        directions = np.column_stack([normalised, np.ones(len(normalised))])
        return directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def pinhole(self) -> Camera:
        """The camera with the same matrix and no distortion."""
        return replace(self, distortion_model='none', distortion=())

    def pinhole_map(self) -> NDArray[np.float32]:
        """Where in this camera's picture (H, W, 2) the pixels of its `pinhole` lie, as OpenCV's remap takes it."""
        columns, rows = np.meshgrid(np.arange(self.width), np.arange(self.height))
        rays = self.pinhole().rays(np.column_stack([columns.ravel(), rows.ravel()]))
        return self.project(rays).reshape(self.height, self.width, 2).astype(np.float32)

    def undistorted_pixels(self, pixels: ArrayLike) -> Array:
        """Pixels (N, 2) that an ideal pinhole camera with the same matrix would see."""
        return self.unproject(pixels) * (self.fx, self.fy) + (self.cx, self.cy)
