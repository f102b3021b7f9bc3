# SPDX-License-Identifier: Apache-2.0
"""The online pipeline: raw frames in, poses and a map out.

One object, one thread: `push` every frame, `flush` at the end. The node, the command line and the tests drive the
same object, and the same frames give the same events.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from pathlib import Path

from dark3r_ros.errors import Dark3rError, ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.geometry.rolling import RollingCamera
from dark3r_ros.mapping.anew import Verdict, look_again
from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.bridging import OdometryBridges
from dark3r_ros.mapping.completing import finish_map, join_what_can_be, straighten_map
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import Event, FramePosed, FrameUnposed, MapDiscarded, PipelineStatus, StateChanged
from dark3r_ros.mapping.finding import find, follow
from dark3r_ros.mapping.finishing import MatchedAgain
from dark3r_ros.mapping.growing import Growth
from dark3r_ros.mapping.holding import ScaleHold
from dark3r_ros.mapping.initialise import Initialiser, InitialPair
from dark3r_ros.mapping.intake import Intake, Prepared, RefusedError, camera_notes
from dark3r_ros.mapping.keyframing import start_map
from dark3r_ros.mapping.memory import MemoryKeeper, view_bytes
from dark3r_ros.mapping.motion import MotionJudge, odometry_track
from dark3r_ros.mapping.recording import HeldViews
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.replacing import replace_map
from dark3r_ros.mapping.reporting import (
    StageClock,
    frame_posed,
    frames_joined,
    in_time_order,
    keyframe_added,
    keyframes_moved,
)
from dark3r_ros.mapping.result import build_reconstruction
from dark3r_ros.mapping.shutter import learn_turn, turning
from dark3r_ros.mapping.sparse_map import View
from dark3r_ros.mapping.state_file import SavedState, write_state
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.tracking import Expectation, TrackResult, failed_track, quality, started_track, track
from dark3r_ros.mapping.window import refine_window
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.sfm.progress import Progress, quiet
from dark3r_ros.types import Float64Array, Frame, MappingState, Reconstruction


class MappingPipeline:
    """Initialisation, tracking, keyframes, sliding window, loss and recovery, submaps and loops.

    Deterministic and single-threaded. A frame that cannot be used is answered with an event, never with an
    exception. `offline`: a recording, which waits: all work for a keyframe is done before the next frame, which may be
    a wide step away, and at the end there is time to match all of a small map again.
    """

    def __init__(
        self, config: MappingConfig, predictor: Predictor, noise: NoiseModel | None = None, *, offline: bool = False
    ) -> None:
        if offline:
            config = replace(config, step_seconds=0.0)
        self._config, self._predictor, self._noise, self._offline = config, predictor, noise, offline
        self._memory = MemoryKeeper(config)
        self._odometry = odometry = odometry_track()
        self._judge, self._bridges = MotionJudge(odometry), OdometryBridges(odometry)
        self._hold = ScaleHold(odometry, config.camera_height)
        self.reset()

    def reset(self) -> None:
        """Forget everything and wait for the first frame."""
        self._memory.close()
        self._memory = MemoryKeeper(self._config)
        self._timed = StageClock()
        self._intake = Intake(self._config, self._predictor, self._noise, self._odometry)
        self._judged: Submap | None = None  # whose poses the judge compares
        self._prepared: Prepared | None = None  # the newest frame
        self._log = PoseLog()
        self._clear_map()
        self._state = MappingState.WAITING_FOR_CALIBRATION
        self._message = 'waiting for the first frame with calibration'
        self._camera: Camera | None = None
        self._newest: tuple[int, int] = (0, 0)  # inliers, matches of the newest frame
        self._quality = (math.nan, math.nan)  # reprojection error in pixels, share found again
        self._newest_posed_ns = -(2**63)

    def _clear_map(self) -> None:
        self._initialiser = Initialiser(self._config, self._predictor)
        self._atlas = Atlas(self._config)
        self._held = HeldViews(self._config.rematch_frames if self._offline else 0)
        self._verdict = Verdict()
        self._retry: deque[View] = deque(maxlen=self._config.retry_frames or None)
        self._young: list[View] = []  # all views of a map that may yet be given up
        self._judge.restart()
        self._bridges.restart()
        self._growth = self._new_growth()
        self._failures = 0

    def _new_growth(self) -> Growth:
        watchers = self._judge, self._bridges, self._hold
        return Growth(self._config, self._predictor, self._atlas, self._log, *watchers, self._enforce, self._timed)

    def _enforce(self) -> None:
        """Keep the memory under its ceiling."""
        self._memory.enforce(self._atlas, self._retry, self._other_bytes())

    # ------------------------------------------------------------------ input

    def push(self, frame: Frame) -> list[Event]:
        """Process one frame; returns what happened, in order."""
        return self.pose(self.prepare(frame)) + self.work()

    def add_odometry(self, stamp_ns: int, odom_from_body: Float64Array) -> None:
        """Take a pose (4, 4) of the robot in metres, by which jumps are judged and gaps bridged; from any thread."""
        self._odometry.add(stamp_ns, odom_from_body)

    def mount(self, body_from_camera: Float64Array) -> None:
        """Say how the camera (optical axes) sits on the body of the odometry (4, 4); without, it looks along its x."""
        self._odometry.body_from_camera = body_from_camera

    def prepare(self, frame: Frame) -> Prepared:
        """First part of `push`: check and encode. Another thread may do it for the next frame meanwhile."""
        with self._timed('encode'):
            return self._intake.prepare(frame)

    def pose(self, prepared: Prepared) -> list[Event]:
        """Second part of `push`: the pose of a prepared frame."""
        if prepared.source is not self._intake:
            frame = prepared.frame
            return [FrameUnposed(frame.stamp_ns, frame.frame_id, 'the map was reset while this frame was encoded')]
        frame, self._prepared = prepared.frame, prepared
        if prepared.refusal is not None:
            return self._refused(frame, prepared.refusal)
        view = prepared.view
        assert view is not None
        if self._camera is None:
            self._camera = frame.camera
        self._log.add(view.stamp_ns, view.name, view.snr_db, 'not reached')
        try:
            if self._atlas.active.map.keyframes:
                return self._track(view)
            return self._initialise(view)
        except Dark3rError as error:  # a predictor that cannot match this frame
            return self._unposed(view, failed_track(0, str(error)))

    def work(self) -> list[Event]:
        """Last part of `push`: go on with what the newest keyframe asks for, as far as there is time for it."""
        return [] if self._prepared is None else self._growth.advance(self._prepared.frame.stamp_ns)

    def flush(self, progress: Progress = quiet) -> list[Event]:
        """End of the input: start the map from the best pair if there is none, retry frames, join, refine.

        Of a short recording, a map that is doubtful then, or missing, is compared with what `sfm` makes of all views.
        """
        events = self._growth.finish()
        if not self._atlas.active.map.keyframes:
            pair = self._initialiser.finish()
            if pair is not None:
                events += self._start(pair)
        if not self._atlas.active.map.keyframes:
            return events + self._look_again(None, progress)
        events += self._retry_unposed()
        with self._timed('loops'):
            for evidence, submap in join_what_can_be(self._atlas, self._growth.gate, self._config):
                events += self._growth.join(evidence, submap)
        submap = self._atlas.largest(self._log)
        matched = None
        observing = sum(1 for keyframe in submap.map.keyframes if len(keyframe.table.observing()))
        if observing <= self._config.final_keyframes:
            with self._timed('final'):
                held = self._held if self._offline else None
                moved, matched = finish_map(submap, self._predictor, self._hold, self._log, self._config, held)
                events.append(keyframes_moved(moved, submap))
            events += self._retry_unposed()
        return events + self._look_again(matched, progress)

    def _look_again(self, matched: MatchedAgain | None, progress: Progress) -> list[Event]:
        """Put another map in the place of a doubtful one, where all views of the recording are at hand."""
        with self._timed('anew'):
            views = self._held.whole(self._atlas, self._config.rematch_keyframes)
            if views is None:
                return []
            args = self._atlas, self._log, matched, self._predictor, self._config, progress
            self._verdict = verdict = look_again(views, *args)
            if verdict.solution is None:
                return []
            submap = replace_map(self._atlas, self._log, verdict.views, verdict.solution)
            straighten_map(submap, self._hold, self._log, self._config)
        self._retry.clear()
        self._growth.gate.forget()
        self._judge.restart()
        self._bridges.restart()
        message = 'the map was made anew from all pairs of views: more matches agree with that'
        stamp_ns = views[-1].stamp_ns
        events: list[Event] = [MapDiscarded(stamp_ns, message)]
        events += frames_joined(submap.map.keyframes, submap, self._log)
        return events + self._enter(stamp_ns, MappingState.TRACKING, message)

    # ------------------------------------------------------------------ output

    def reconstruction(self, *, largest: bool = False) -> Reconstruction:
        """Everything known now, from the newest estimates, in the frame of the map.

        Frames of submaps that are not joined to it count as unposed. With `largest` the submap with most frames takes
        the place of the map. Raises ReconstructionError without a single calibrated frame.
        """
        submap = self._atlas.largest(self._log) if largest else self._atlas.submaps[0]
        return build_reconstruction(self._camera, submap.map, submap.archive.cloud, self._log)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Wall seconds spent in each stage."""
        return self._timed.seconds

    @property
    def verdict(self) -> Verdict:
        """What came of comparing the map of a short recording with others at its end."""
        return self._verdict

    def submap_frames(self) -> dict[int, int]:
        """How many frames are posed in each submap, by its id."""
        return {submap.submap_id: self._log.posed_by(submap.map.keyframes) for submap in self._atlas.submaps}

    def status(self) -> PipelineStatus:
        """Snapshot for status messages."""
        atlas, gate = self._atlas, self._growth.gate
        return PipelineStatus(
            self._state,
            self._message,
            self._snr_db,
            0 if self._prepared is None else self._prepared.samples,
            *self._newest,
            atlas.keyframes,
            sum(len(submap.map.landmarks) for submap in atlas.submaps),
            len(self._log),
            self._log.posed,
            atlas.nbytes + self._other_bytes() + sum(map(view_bytes, self._retry)),
            atlas.active.submap_id,
            len(atlas.submaps),
            gate.proposed,
            gate.verified,
            gate.accepted,
            dict(gate.refused),
            self._memory.spilled,
            self._memory.problem,
            0 if self._prepared is None else self._prepared.averaged,
            *self._quality,
        )

    def save_state(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write everything that `load_state` needs to go on in this map later, all or nothing.

        Raises OutputError, or ReconstructionError while there is no map.
        """
        if not self._atlas.keyframes:
            raise ReconstructionError('there is no map yet that could be saved')
        self._growth.finish_unheard()
        write_state(folder, self._atlas, self._log, self._camera, self._predictor, overwrite=overwrite)

    def load_state(self, folder: Path | str) -> tuple[str, ...]:
        """Replace the present map by a saved one and look for the camera in it; returns sentences worth a log line.

        `folder` is that of `save_state`, or a result folder with such a one in it. Stamps may begin anew. DataError
        when it is no saved map, is damaged, or was made with another predictor; the present map is then kept.
        """
        saved, memory = SavedState(folder, self._predictor), MemoryKeeper(self._config)
        device = getattr(self._predictor, 'device', 'cpu')
        atlas, log = saved.read(self._config, device, loaded=lambda atlas: memory.enforce(atlas, deque(), 0))
        camera, message = self._camera, f'map of {atlas.keyframes} keyframes loaded: looking for the camera in it'
        self.reset()
        self._atlas, self._log, self._memory, self._camera = atlas, log, memory, saved.camera
        self._growth = self._new_growth()
        self._state, self._message, self._failures = MappingState.LOST, message, 1
        return tuple([message, *camera_notes(saved.camera, camera)])

    # ------------------------------------------------------------------ stages

    def _refused(self, frame: Frame, refusal: RefusedError) -> list[Event]:
        events: list[Event] = [FrameUnposed(frame.stamp_ns, frame.frame_id, str(refusal))]
        if refusal.log:
            self._log.add(frame.stamp_ns, frame.name, self._snr_db, str(refusal))
        started = bool(self._atlas.active.map.keyframes)
        if refusal.waiting and not started:
            return events + self._enter(frame.stamp_ns, MappingState.WAITING_FOR_CALIBRATION, str(refusal))
        self._newest, self._quality = (0, 0), (math.nan, math.nan)
        if not started:
            return events + self._enter(frame.stamp_ns, MappingState.INITIALISING, str(refusal))
        if refusal.counts_as_loss:
            self._failures += 1
        return events + self._enter(frame.stamp_ns, self._state_without_pose(), str(refusal))

    def _initialise(self, view: View) -> list[Event]:
        with self._timed('initialise'):
            pair = self._initialiser.push(view)
        if pair is not None:
            return self._start(pair)
        reason = f'initialising: {self._initialiser.message}'
        self._log.explain(view.stamp_ns, reason)
        self._held.add(view)
        events: list[Event] = [FrameUnposed(view.stamp_ns, view.frame_id, reason)]
        return events + self._enter(view.stamp_ns, MappingState.INITIALISING, self._initialiser.message)

    def _start(self, pair: InitialPair) -> list[Event]:
        """Make a map from the pair, then pose the frames that were waiting: forwards, then backwards in time."""
        self._growth.finish_unheard()
        submap = self._atlas.begin()
        learn_turn(pair)
        keyframes = start_map(submap.map, pair, self._config.min_parallax)
        _, covariance = refine_window(submap.map, self._config, with_covariance=True)
        inliers = int(pair.geometry.inliers.sum())
        posed: list[Event] = []
        for keyframe, view in zip(keyframes, (pair.first, pair.second), strict=True):
            result = started_track(keyframe.camera_from_world, covariance, inliers, len(pair.matches))
            posed += [self._posed(view, result, True), keyframe_added(keyframe, submap)]
            self._growth.now_keyframe(keyframe, result)
            self._bridges.see(submap, keyframe.stamp_ns, keyframe.world_from_camera, keyframe)
        self._judge.restart()
        self._judged = submap
        for keyframe in sorted(keyframes, key=lambda one: one.stamp_ns):
            self._judge.accept(keyframe.stamp_ns, keyframe.world_from_camera)
        waiting = [*self._initialiser.dropped, *self._initialiser.pending]
        waiting = [view for view in waiting if view is not pair.first and view is not pair.second]
        later = [view for view in waiting if view.stamp_ns > pair.first.stamp_ns]
        earlier = [view for view in waiting if view.stamp_ns < pair.first.stamp_ns]
        for view in [*later, *earlier[::-1]][-self._config.retry_frames - 2 :]:
            posed += self._pose_late(view)
        self._initialiser = Initialiser(self._config, self._predictor)
        self._young = [pair.first, pair.second, *waiting]
        self._newest = (inliers, len(pair.matches))
        self._failures, submap.motion = 0, None
        name = 'map' if submap.submap_id == 0 else f'submap {submap.submap_id}, to be joined with the map,'
        return in_time_order(posed) + self._enter(pair.second.stamp_ns, MappingState.TRACKING, f'{name} started')

    def _track(self, view: View) -> list[Event]:
        recovering = self._failures > 0
        self._remember_young(view)
        events = self._growth.finish() if recovering else []
        with self._timed('track'):
            self._expect_turn(view)
            result = self._found(view) if recovering else self._followed(view)
            if result.camera_from_world is None and self._growth.busy:
                # The newest keyframe may be what is missing.
                events += self._growth.finish()
                result = self._followed(view)
        self._newest = (result.inliers, result.matches)
        if result.camera_from_world is None:
            self._quality = (math.nan, math.nan)
            return events + self._unposed(view, result)
        self._quality = (result.reprojection, result.overlap)
        submap, found_again = self._atlas.active, self._state == MappingState.LOST
        if recovering:
            submap.motion = None
            self._initialiser = Initialiser(self._config, self._predictor)
        self._failures = 0
        submap.moved_to(view.stamp_ns, result.camera_from_world)
        self._judge.accept(view.stamp_ns, se3.inverse(result.camera_from_world))
        self._bridges.see(submap, view.stamp_ns, se3.inverse(result.camera_from_world))
        events += self._accept(view, result)
        if found_again:
            message = f'found the map again by {result.inliers} correspondences; the next frame confirms it'
            return events + self._enter(view.stamp_ns, MappingState.RELOCALISING, message)
        return events + self._enter(view.stamp_ns, *quality(result, view, self._config))

    def _followed(self, view: View) -> TrackResult:
        args = self._atlas.active, self._predictor, self._config, self._newest[0], self._expected(view)
        return self._believed(view, follow(view, *args))

    def _found(self, view: View) -> TrackResult:
        lost = self._failures >= self._config.lost_after
        args = self._atlas, self._predictor, self._config, self._failures
        return self._believed(view, find(view, *args, everywhere=lost, expectation=self._expected(view)))

    def _expected(self, view: View) -> Expectation | None:
        """Where a view is looked for first: where odometry says, or where the motion until the last frame leads."""
        submap, config = self._atlas.active, self._config
        if config.expected_reach == 0.0:
            return None
        by_odometry = self._judge.expected(view.stamp_ns) if submap is self._judged else None
        if by_odometry is not None:
            return Expectation(se3.inverse(by_odometry), config.expected_reach, config.expected_share)
        pose = None if self._failures else submap.predicted(view.stamp_ns)
        return None if pose is None else Expectation(pose, config.expected_reach, config.min_inlier_share)

    def _expect_turn(self, view: View) -> None:
        """Let a rolling camera turn as it must have done to come to where it is expected."""
        if not isinstance(view.camera, RollingCamera):
            return
        view.motion = motion = self._atlas.active.motion
        expectation = self._expected(view)
        if motion is not None and expectation is not None:
            view.camera = turning(view.camera, motion[1], (view.stamp_ns, expectation.camera_from_world))

    def _believed(self, view: View, result: TrackResult) -> TrackResult:
        """The result, or a failure where the motion so far or the odometry speaks against it."""
        if result.camera_from_world is None:
            return result
        submap = self._atlas.active
        if submap is not self._judged:
            self._judge.restart()
            self._judged = submap
        depth, lost = submap.depth(submap.map.keyframes[-1]), self._failures >= self._config.lost_after
        pose = se3.inverse(result.camera_from_world)
        reason = self._judge.objection(view.stamp_ns, pose, depth, lost=lost)
        return failed_track(result.matches, reason) if reason else result

    def _accept(self, view: View, result: TrackResult) -> list[Event]:
        """Log a tracked view and make it a keyframe where it shows something new."""
        submap, pose = self._atlas.active, result.camera_from_world
        assert pose is not None
        view.camera = result.camera or view.camera
        submap.trust.accept(result.inliers)
        wanted = self._growth.wanted(view, result, submap)
        events: list[Event] = [self._posed(view, result, wanted)]
        if wanted:
            self._growth.begin(view, result, submap)
        return events

    def _unposed(self, view: View, result: TrackResult) -> list[Event]:
        self._failures += 1
        self._log.explain(view.stamp_ns, result.reason)
        self._held.add(view)
        if self._config.retry_frames:
            self._retry.append(view)
        self._enforce()
        events: list[Event] = [FrameUnposed(view.stamp_ns, view.frame_id, result.reason)]
        if self._failures >= self._config.lost_after and self._is_young():
            return events + self._give_up(view)
        if 0 < self._config.submap_after <= self._failures:
            with self._timed('initialise'):
                pair = self._initialiser.push(view)
            if pair is not None:
                return events + self._start(pair)
        return events + self._enter(view.stamp_ns, self._state_without_pose(), result.reason)

    def _is_young(self) -> bool:
        posed = self._log.posed_by(self._atlas.active.map.keyframes) if self._young else 0
        return bool(self._young) and posed <= self._config.young_frames

    def _remember_young(self, view: View) -> None:
        if self._young and not self._is_young():
            self._young = []
        elif self._young and len(self._young) < self._config.retry_frames:
            self._young.append(view)

    def _give_up(self, view: View) -> list[Event]:
        """Start again from the newest view; the others are posed once the new map stands."""
        self._growth.drop()
        message = 'the newest map was too weak to go on: starting again'
        waiting = [other for other in self._young if other is not view]
        for other in waiting:
            self._held.add(other)
        self._log.discard_poses(message, self._atlas.active.map.keyframes)
        self._atlas.give_up()
        self._growth.gate.forget()
        self._young = []
        self._initialiser = Initialiser(self._config, self._predictor)
        self._initialiser.dropped = waiting
        self._initialiser.push(view)
        if self._atlas.active.map.keyframes:  # another submap has taken its place
            self._failures = max(self._failures, self._config.submap_after)
            return self._enter(view.stamp_ns, MappingState.LOST, message)
        self._retry.clear()
        self._failures = 0
        discarded: list[Event] = [MapDiscarded(view.stamp_ns, message)]
        return discarded + self._enter(view.stamp_ns, MappingState.INITIALISING, message)

    def _pose_late(self, view: View) -> list[Event]:
        """Pose a view out of turn, against the keyframes nearest to it in time."""
        submap = self._atlas.active
        if self._log.is_posed(view.stamp_ns):
            return []
        near, bound = submap.nearest_in_time(view.stamp_ns, 6), submap.trust.bound(failures=1)
        result = track(view, near, submap.map, self._predictor, self._config, min_inliers=bound)
        if result.camera_from_world is None:
            self._log.explain(view.stamp_ns, result.reason)
            if self._config.retry_frames and all(view is not other for other in self._retry):
                self._retry.append(view)
            return []
        submap.baseline = None
        return self._accept(view, result) + self._growth.finish()

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

    def _other_bytes(self) -> int:
        return (
            self._log.nbytes
            + self._held.nbytes
            + sum(map(view_bytes, [*self._young, *self._initialiser.pending, *self._initialiser.dropped]))
        )

    # ------------------------------------------------------------------ states and events

    def _state_without_pose(self) -> MappingState:
        lost = self._state in (MappingState.LOST, MappingState.RELOCALISING)
        return MappingState.LOST if lost or self._failures >= self._config.lost_after else MappingState.DEGRADED

    def _enter(self, stamp_ns: int, state: MappingState, message: str) -> list[Event]:
        old, self._state, self._message = self._state, state, message
        return [StateChanged(stamp_ns, old, state, message)] if old != state else []

    @property
    def _snr_db(self) -> float:
        return math.nan if self._prepared is None else self._prepared.snr_db

    def _posed(self, view: View, result: TrackResult, becomes_keyframe: bool) -> FramePosed:
        """Log a pose."""
        submap, pose = self._atlas.active, result.camera_from_world
        assert pose is not None
        self._log.pose(view.stamp_ns, submap.map.keyframes[-1], pose, result.inliers, result.matches, False)
        self._held.add(view, keyframe=becomes_keyframe)
        late = view.stamp_ns < self._newest_posed_ns
        self._newest_posed_ns = max(self._newest_posed_ns, view.stamp_ns)
        return frame_posed(view, submap, result, becomes_keyframe, late=late)
