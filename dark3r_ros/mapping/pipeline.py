# SPDX-License-Identifier: Apache-2.0
"""The online pipeline: raw frames in, poses and a map out.

One object, one thread: `push` every frame, `flush` at the end. The node, the command line and the tests drive the
same object, and the same frames give the same events.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import Dark3rError, DataError, OutputError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.archive import Archive
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import (
    Event,
    FramePosed,
    FrameUnposed,
    KeyframeAdded,
    MapDiscarded,
    PipelineStatus,
    StateChanged,
)
from dark3r_ros.mapping.initialise import Initialiser, InitialPair
from dark3r_ros.mapping.intake import Intake, RefusedError
from dark3r_ros.mapping.keyframing import insert_keyframe, link, start_map
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.reporting import in_time_order, keyframes_moved, world_covariance
from dark3r_ros.mapping.result import build_reconstruction
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap, View
from dark3r_ros.mapping.tracking import TrackResult, failed_track, needs_keyframe, track
from dark3r_ros.mapping.trust import InlierBound
from dark3r_ros.mapping.window import refine_all, refine_window
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.types import Frame, MappingState, Reconstruction

Array = NDArray[np.float64]

STAGES = ('encode', 'initialise', 'track', 'keyframe', 'window', 'final')


class MappingPipeline:
    """Initialisation, tracking, keyframes, sliding window, loss and recovery.

    Deterministic and single-threaded. A frame that cannot be used is answered with an event, never with an
    exception.
    """

    def __init__(self, config: MappingConfig, predictor: Predictor, noise: NoiseModel | None = None) -> None:
        self._config, self._predictor, self._noise = config, predictor, noise
        self.reset()

    def reset(self) -> None:
        """Forget everything and wait for the first frame."""
        self._intake = Intake(self._config, self._predictor, self._noise)
        self._clear_map()
        self._log = PoseLog()
        self._state = MappingState.WAITING_FOR_CALIBRATION
        self._message = 'waiting for the first frame with calibration'
        self._camera: Camera | None = None
        self._newest: tuple[int, int] = (0, 0)  # inliers, matches of the newest frame
        self._newest_posed_ns = -(2**63)
        self.stage_seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    def _clear_map(self) -> None:
        self._initialiser = Initialiser(self._config, self._predictor)
        self._map = SparseMap()
        self._archive = Archive(self._config)
        self._retry: deque[View] = deque(maxlen=self._config.retry_frames or None)
        self._young: list[View] = []  # all views of a map that may yet be given up
        self._failures = 0
        self._motion: tuple[Array, Array] | None = None  # the last two camera_from_world
        self._baseline: TrackResult | None = None
        self._trust = InlierBound(self._config)

    # ------------------------------------------------------------------ input

    def push(self, frame: Frame) -> list[Event]:
        """Process one frame; returns what happened, in order."""
        try:
            with self._timed('encode'):
                view = self._intake.take(frame)
        except RefusedError as refusal:
            return self._refused(frame, refusal)
        if self._camera is None:
            self._camera = frame.camera
        self._log.add(view.stamp_ns, view.name, view.snr_db, 'not reached')
        try:
            if self._map.keyframes:
                return self._track(view)
            with self._timed('initialise'):
                return self._initialise(view)
        except Dark3rError as error:  # a predictor that cannot match this frame
            return self._unposed(view, failed_track(0, str(error)))

    def flush(self) -> list[Event]:
        """End of the input: start the map from the best pair if there is none, retry frames, refine everything."""
        events: list[Event] = []
        if not self._map.keyframes:
            pair = self._initialiser.finish()
            if pair is not None:
                events += self._start(pair)
        if not self._map.keyframes:
            return events
        events += self._retry_unposed()
        observing = sum(1 for keyframe in self._map.keyframes if len(keyframe.table.observing()))
        if observing <= self._config.final_keyframes:
            with self._timed('final'):
                self._complete_matches()
                events.append(keyframes_moved(refine_all(self._map, self._config)))
            events += self._retry_unposed()
        return events

    # ------------------------------------------------------------------ output

    def reconstruction(self) -> Reconstruction:
        """Everything known now, from the newest estimates. Raises ReconstructionError without a single frame."""
        return build_reconstruction(self._camera, self._map, self._archive.cloud, self._log)

    def status(self) -> PipelineStatus:
        """Snapshot for status messages."""
        return PipelineStatus(
            self._state,
            self._message,
            self._intake.snr_db,
            self._intake.samples,
            *self._newest,
            len(self._map.keyframes),
            len(self._map.landmarks),
            len(self._log),
            self._log.posed,
            self._map.nbytes + self._log.nbytes + self._archive.cloud.nbytes,
        )

    def save_state(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write everything that `load_state` needs to go on in this map later; OutputError when it cannot be.

        Signature only as yet: raises OutputError.
        """
        raise OutputError(f'cannot write {folder}: saving a live map is not built yet')

    def load_state(self, folder: Path | str) -> tuple[str, ...]:
        """Replace the present map by a saved one and look for the camera in it; returns sentences worth a log line.

        DataError when the folder is no saved map, is damaged, or was made with another predictor. The present map is
        then kept. Signature only as yet: raises DataError.
        """
        raise DataError(f'cannot read {folder}: loading a live map is not built yet')

    # ------------------------------------------------------------------ stages

    def _refused(self, frame: Frame, refusal: RefusedError) -> list[Event]:
        events: list[Event] = [FrameUnposed(frame.stamp_ns, frame.frame_id, str(refusal))]
        if refusal.log:
            self._log.add(frame.stamp_ns, frame.name, self._intake.snr_db, str(refusal))
        if refusal.waiting and not self._map.keyframes:
            return events + self._enter(frame.stamp_ns, MappingState.WAITING_FOR_CALIBRATION, str(refusal))
        self._newest = (0, 0)
        if not self._map.keyframes:
            return events + self._enter(frame.stamp_ns, MappingState.INITIALISING, str(refusal))
        if refusal.counts_as_loss:
            self._failures += 1
        return events + self._enter(frame.stamp_ns, self._state_without_pose(), str(refusal))

    def _initialise(self, view: View) -> list[Event]:
        pair = self._initialiser.push(view)
        if pair is not None:
            return self._start(pair)
        reason = f'initialising: {self._initialiser.message}'
        self._log.explain(view.stamp_ns, reason)
        events: list[Event] = [FrameUnposed(view.stamp_ns, view.frame_id, reason)]
        return events + self._enter(view.stamp_ns, MappingState.INITIALISING, self._initialiser.message)

    def _start(self, pair: InitialPair) -> list[Event]:
        """Make the map from the pair, then pose the frames that were waiting: forwards, then backwards in time."""
        first, second = start_map(self._map, pair, self._config.min_parallax)
        refine_window(self._map, self._config)
        inliers = int(pair.geometry.inliers.sum())
        posed: list[Event] = []
        for keyframe, view in ((first, pair.first), (second, pair.second)):
            self._log.pose(view.stamp_ns, keyframe, keyframe.camera_from_world, inliers, len(pair.matches), True)
            posed += self._report(
                view, keyframe.camera_from_world, np.zeros((6, 6)), inliers, len(pair.matches), keyframe
            )
        waiting = [*self._initialiser.dropped, *self._initialiser.pending]
        waiting = [view for view in waiting if view is not pair.first and view is not pair.second]
        later = [view for view in waiting if view.stamp_ns > pair.first.stamp_ns]
        earlier = [view for view in waiting if view.stamp_ns < pair.first.stamp_ns]
        for view in [*later, *earlier[::-1]][-self._config.retry_frames - 2 :]:
            posed += self._pose_late(view)
        self._initialiser = Initialiser(self._config, self._predictor)
        self._young = [pair.first, pair.second, *waiting]
        self._newest = (inliers, len(pair.matches))
        self._motion = None
        stamp = pair.second.stamp_ns
        return in_time_order(posed) + self._enter(stamp, MappingState.TRACKING, 'map started')

    def _track(self, view: View) -> list[Event]:
        recovering = self._failures > 0
        references = self._references(recovering)
        guess = self._predicted() if not recovering else None
        self._remember_young(view)
        with self._timed('track'):
            bound = self._trust.bound(self._failures)
            result = track(view, references, self._map, self._predictor, self._config, guess, bound)
            if result.camera_from_world is None and not recovering:
                wide = self._references(True)
                result = track(view, wide, self._map, self._predictor, self._config, min_inliers=bound)
        self._newest = (result.inliers, result.matches)
        if result.camera_from_world is None:
            return self._unposed(view, result)
        found_again = self._state == MappingState.LOST
        if recovering:
            self._motion = None
        self._failures = 0
        events = self._accept(view, result)
        self._motion = (self._motion[1] if self._motion else result.camera_from_world, result.camera_from_world)
        if found_again:
            message = f'found the map again by {result.inliers} correspondences; the next frame confirms it'
            return events + self._enter(view.stamp_ns, MappingState.RELOCALISING, message)
        return events + self._enter(view.stamp_ns, *self._quality(result))

    def _accept(self, view: View, result: TrackResult) -> list[Event]:
        """Log a tracked view and make it a keyframe where it shows something new."""
        pose = result.camera_from_world
        assert pose is not None
        self._trust.accept(result.inliers)
        if not needs_keyframe(result, self._baseline, self._config):
            if self._baseline is None:
                self._baseline = result
            reference = self._map.keyframes[-1]
            self._log.pose(view.stamp_ns, reference, pose, result.inliers, result.matches, False)
            return self._report(view, pose, result.covariance, result.inliers, result.matches, None)
        neighbours = self._neighbours(result)
        with self._timed('keyframe'):
            keyframe = insert_keyframe(self._map, view, pose, neighbours, self._predictor, self._config)
        with self._timed('window'):
            moved, covariance = refine_window(self._map, self._config)
        self._baseline = None
        self._log.pose(view.stamp_ns, keyframe, keyframe.camera_from_world, result.inliers, result.matches, True)
        events = self._report(view, keyframe.camera_from_world, covariance, result.inliers, result.matches, keyframe)
        self._archive.retire(self._map)
        return [*events, keyframes_moved(moved)]

    def _unposed(self, view: View, result: TrackResult) -> list[Event]:
        self._failures += 1
        self._log.explain(view.stamp_ns, result.reason)
        if self._config.retry_frames:
            self._retry.append(view)
        events: list[Event] = [FrameUnposed(view.stamp_ns, view.frame_id, result.reason)]
        if self._failures >= self._config.lost_after and self._log.posed <= self._config.young_frames:
            return events + self._give_up(view)
        return events + self._enter(view.stamp_ns, self._state_without_pose(), result.reason)

    def _remember_young(self, view: View) -> None:
        if self._log.posed > self._config.young_frames:
            self._young = []
        elif len(self._young) < self._config.retry_frames:
            self._young.append(view)

    def _give_up(self, view: View) -> list[Event]:
        """Start again from the newest view; the others are posed once the new map stands."""
        message = 'the first map was too weak to go on: starting again'
        waiting = [other for other in self._young if other is not view]
        self._log.discard_poses(message)
        self._clear_map()
        self._initialiser.dropped = waiting
        discarded: list[Event] = [MapDiscarded(view.stamp_ns, message)]
        self._initialiser.push(view)
        return discarded + self._enter(view.stamp_ns, MappingState.INITIALISING, message)

    def _pose_late(self, view: View) -> list[Event]:
        """Pose a view out of turn, against the keyframes nearest to it in time and a few newest ones."""
        nearest = sorted(
            (keyframe for keyframe in self._map.keyframes if keyframe.features is not None),
            key=lambda keyframe: (abs(keyframe.stamp_ns - view.stamp_ns), keyframe.keyframe_id),
        )[:6]
        bound = self._trust.bound(failures=1)
        result = track(view, nearest, self._map, self._predictor, self._config, min_inliers=bound)
        if result.camera_from_world is None:
            self._log.explain(view.stamp_ns, result.reason)
            if self._config.retry_frames and all(view is not other for other in self._retry):
                self._retry.append(view)
            return []
        self._baseline = None
        return self._accept(view, result)

    def _retry_unposed(self) -> list[Event]:
        """Try frames without a pose again until a whole round brings nothing new."""
        events: list[Event] = []
        progress = True
        while progress and self._retry:
            waiting = list(self._retry)
            self._retry.clear()
            found = [event for view in waiting for event in self._pose_late(view)]
            progress = bool(found)
            events += found
        return in_time_order(events)

    def _complete_matches(self) -> None:
        """Match keyframes that see the same landmarks but never met, so that the final adjustment is well tied."""
        self._map.retire(0)  # old keyframes gain observations here
        keyframes = [keyframe for keyframe in self._map.keyframes if keyframe.features is not None]
        for number, keyframe in enumerate(keyframes):
            before = keyframes[: max(number - self._config.neighbours, 0)]
            seen = keyframe.table.landmark
            partners = self._map.covisible(seen[seen >= 0], before)[: self._config.neighbours]
            link(self._map, keyframe, partners, self._predictor, self._config)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[stage] += time.perf_counter() - began

    # ------------------------------------------------------------------ choices

    def _references(self, wide: bool) -> list[Keyframe]:
        keyframes = self._map.keyframes
        newest = keyframes[-1]
        if not wide:
            # While the newest keyframe alone holds the pose firmly, a second one adds cost and little else.
            return [newest] if self._newest[0] >= self._config.firm_inliers else [newest, *keyframes[-2:-1]]
        seen = newest.table.landmark
        around = self._map.covisible(seen[seen >= 0], keyframes[-20:-1])[:3]
        references = [newest, *around]
        if self._failures:
            references += self._archive.relocalisation_candidates(self._map)
        unique = {keyframe.keyframe_id: keyframe for keyframe in references}
        return list(unique.values())

    def _neighbours(self, result: TrackResult) -> list[Keyframe]:
        count = self._config.neighbours
        recent = self._map.keyframes[-(self._config.window + 4 * self._config.window_fixed) :]
        around = [
            keyframe for keyframe in self._map.covisible(result.landmarks, recent) if keyframe.features is not None
        ]
        return around[:count]

    def _predicted(self) -> Array | None:
        """Pose of constant velocity."""
        if self._motion is None:
            return None
        before, last = self._motion
        return se3.normalised(last @ se3.inverse(before) @ last)

    def _quality(self, result: TrackResult) -> tuple[MappingState, str]:
        snr = self._intake.snr_db
        if math.isfinite(snr) and snr < self._config.degraded_snr:
            return MappingState.DEGRADED, f'signal-to-noise ratio {snr:.1f} dB: lengthen the exposure or slow down'
        if result.inliers < self._config.degraded_inliers:
            return MappingState.DEGRADED, f'only {result.inliers} correspondences hold the pose: slow down or add light'
        return MappingState.TRACKING, 'tracking'

    def _state_without_pose(self) -> MappingState:
        lost = self._state in (MappingState.LOST, MappingState.RELOCALISING)
        return MappingState.LOST if lost or self._failures >= self._config.lost_after else MappingState.DEGRADED

    # ------------------------------------------------------------------ events

    def _enter(self, stamp_ns: int, state: MappingState, message: str) -> list[Event]:
        old, self._state, self._message = self._state, state, message
        return [StateChanged(stamp_ns, old, state, message)] if old != state else []

    def _report(
        self, view: View, pose: Array, covariance: Array, inliers: int, matches: int, keyframe: Keyframe | None
    ) -> list[Event]:
        late = view.stamp_ns < self._newest_posed_ns
        self._newest_posed_ns = max(self._newest_posed_ns, view.stamp_ns)
        world_from_camera = se3.inverse(pose)
        events: list[Event] = [
            FramePosed(
                view.stamp_ns,
                view.frame_id,
                world_from_camera,
                world_covariance(world_from_camera, covariance),
                inliers,
                matches,
                view.snr_db,
                keyframe is not None,
                late,
            )
        ]
        if keyframe is not None:
            rows = keyframe.table.observing()
            cloud = self._map.cloud(keyframe.table.landmark[rows])
            events.append(
                KeyframeAdded(
                    keyframe.keyframe_id,
                    view.stamp_ns,
                    view.frame_id,
                    world_from_camera,
                    cloud,
                    view.snr_db,
                    len(rows),
                )
            )
        return events
