# SPDX-License-Identifier: Apache-2.0
"""Monocular visual odometry from OpenCV's parts, as a robot without this package would run it on developed pictures.

SIFT or ORB features, brute-force matching with Lowe's ratio test, the five-point essential matrix for the first two
keyframes, RANSAC PnP against triangulated points after that. No bundle adjustment and no loops: a baseline.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError
from dark3r_ros.evaluation.peer_pictures import develop_all
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.two_view import parallax_angles, reprojection_errors, triangulate
from dark3r_ros.types import Float64Array, Frame, Reconstruction

FEATURES = ('sift', 'orb')
_RATIO = 0.8
_LEAST = 15  # inliers of a pose
_THRESHOLD_PX = 2.0
_LEAST_PARALLAX = np.radians(1.0)
_NEW_KEYFRAME_SHARE = 0.6  # of the keyframe's points that are still seen


@dataclass
class _Keyframe:
    """Features of a frame with the points that are known at them (N, 3), NaN where there is none."""

    pixels: Float64Array
    descriptors: NDArray[Any]
    camera_from_world: Float64Array
    points: Float64Array


class VisualOdometry:
    """Feed pictures in order; `push` gives world_from_camera (4, 4) or None while the pose is unknown."""

    def __init__(self, matrix: Float64Array, features: str = 'sift') -> None:
        if features not in FEATURES:
            raise ConfigError(f'features {features!r} are not one of {", ".join(FEATURES)}')
        self._matrix = np.asarray(matrix, dtype=np.float64)
        # The stubs of OpenCV lack these factories.
        makers: Any = cv2
        self._detector = makers.SIFT_create(2000) if features == 'sift' else makers.ORB_create(2000)
        self._matcher = cv2.BFMatcher(cv2.NORM_L2 if features == 'sift' else cv2.NORM_HAMMING)
        self._keyframe: _Keyframe | None = None
        self._started = False
        cv2.setRNGSeed(0)

    def push(self, image: NDArray[np.uint8]) -> Float64Array | None:
        """Pose of the next picture (h, w, 3) RGB in the frame of the first keyframe; arbitrary scale."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        keypoints, descriptors = self._detector.detectAndCompute(grey, None)
        if descriptors is None or len(keypoints) < _LEAST:
            return None
        pixels = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64)
        frame = _Keyframe(pixels, descriptors, np.eye(4), np.full((len(pixels), 3), np.nan))
        if self._keyframe is None:
            self._keyframe = frame
            return np.eye(4)
        first, second = self._match(self._keyframe.descriptors, descriptors)
        pose = self._track(frame, first, second) if self._started else self._start(frame, first, second)
        return None if pose is None else se3.inverse(pose)

    def _match(self, a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = [pair for pair in self._matcher.knnMatch(a, b, k=2) if len(pair) == 2]
        good = [best for best, other in pairs if best.distance < _RATIO * other.distance]
        chosen = np.array([(match.queryIdx, match.trainIdx) for match in good], dtype=np.int64).reshape(-1, 2)
        return chosen[:, 0], chosen[:, 1]

    def _start(self, frame: _Keyframe, first: NDArray[np.int64], second: NDArray[np.int64]) -> Float64Array | None:
        keyframe = self._keyframe
        assert keyframe is not None
        if len(first) < _LEAST:
            self._keyframe = frame
            return None
        a, b = keyframe.pixels[first], frame.pixels[second]
        essential, mask = cv2.findEssentialMat(a, b, self._matrix, cv2.RANSAC, 0.999, _THRESHOLD_PX / 2)
        if essential is None or essential.shape != (3, 3):
            return None
        _, rotation, translation, mask = cv2.recoverPose(essential, a, b, self._matrix, mask=mask)
        kept = mask.ravel() > 0
        pose = se3.make(rotation, translation.ravel())
        if kept.sum() < _LEAST or self._fill(keyframe, frame, pose, first[kept], second[kept]) < _LEAST:
            return None
        self._started = True
        self._keyframe = frame
        return pose

    def _track(self, frame: _Keyframe, first: NDArray[np.int64], second: NDArray[np.int64]) -> Float64Array | None:
        keyframe = self._keyframe
        assert keyframe is not None
        known = np.isfinite(keyframe.points[first, 0])
        if known.sum() < _LEAST:
            return None
        points, pixels = keyframe.points[first[known]], frame.pixels[second[known]]
        found, turn, shift, inliers = cv2.solvePnPRansac(
            points, pixels, self._matrix, None, reprojectionError=_THRESHOLD_PX, iterationsCount=300
        )
        if not found or inliers is None or len(inliers) < _LEAST:
            return None
        kept = inliers.ravel()
        turn, shift = cv2.solvePnPRefineLM(points[kept], pixels[kept], self._matrix, None, turn, shift)
        pose = se3.make(cv2.Rodrigues(turn)[0], shift.ravel())
        if len(kept) < _NEW_KEYFRAME_SHARE * np.isfinite(keyframe.points[:, 0]).sum():
            frame.points[second[known][kept]] = points[kept]
            self._fill(keyframe, frame, pose, first, second)
            self._keyframe = frame
        return pose

    def _fill(
        self,
        keyframe: _Keyframe,
        frame: _Keyframe,
        camera_from_world: Float64Array,
        first: NDArray[np.int64],
        second: NDArray[np.int64],
    ) -> int:
        """Triangulate what `frame` at its new pose sees of `keyframe`; number of points that are good."""
        frame.camera_from_world = camera_from_world
        unknown = ~np.isfinite(frame.points[second, 0])
        first, second = first[unknown], second[unknown]
        poses = np.stack([keyframe.camera_from_world, camera_from_world])
        rays = [self._normalised(keyframe.pixels[first]), self._normalised(frame.pixels[second])]
        points = triangulate(poses, np.stack(rays, axis=1))
        centre_first, centre_second = (se3.inverse(pose)[:3, 3] for pose in poses)
        good = parallax_angles(centre_first, centre_second, points) > _LEAST_PARALLAX
        for pose, observed in zip(poses, rays, strict=True):
            good &= reprojection_errors(pose, points, observed) * self._matrix[0, 0] < _THRESHOLD_PX
        frame.points[second[good]] = points[good]
        return int(good.sum())

    def _normalised(self, pixels: Float64Array) -> Float64Array:
        return (pixels - self._matrix[:2, 2]) / np.diag(self._matrix)[:2]


def track_pictures(frames: Iterable[Frame], features: str = 'sift', pictures: str = 'stretched') -> Reconstruction:
    """Poses of raw frames by visual odometry on developed pictures (`peer_pictures.KINDS`); no points are kept."""
    developed = develop_all(frames, pictures)
    odometry = VisualOdometry(developed.camera.matrix, features)
    poses = {}
    for number, image in enumerate(developed.images):
        pose = odometry.push(image)
        if pose is not None:
            poses[number] = pose
    return developed.reconstruction(poses if len(poses) > 1 else {}, 'visual odometry lost the camera')
