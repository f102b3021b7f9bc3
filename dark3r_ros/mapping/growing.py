# SPDX-License-Identifier: Apache-2.0
"""How a view becomes a keyframe: when, and all that follows from it, in pieces between frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.rolling import RollingCamera
from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.bridging import OdometryBridges
from dark3r_ros.mapping.chores import Chores
from dark3r_ros.mapping.closing import join_submaps, spread_error_in_steps, tie_places
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import Event
from dark3r_ros.mapping.evidence import Evidence
from dark3r_ros.mapping.holding import ScaleHold
from dark3r_ros.mapping.keyframing import link_matched, new_keyframe
from dark3r_ros.mapping.loops import LoopGate
from dark3r_ros.mapping.motion import MotionJudge
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.reporting import frames_joined, keyframe_added, keyframes_moved
from dark3r_ros.mapping.shutter import turning_among
from dark3r_ros.mapping.similarity import Similarity
from dark3r_ros.mapping.sparse_map import Keyframe, View
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.tracking import Expectation, TrackResult, locate_near, needs_keyframe, sought, track
from dark3r_ros.mapping.window import refine_window
from dark3r_ros.model.predictor import Locator, Predictor
from dark3r_ros.sfm.progress import side_by_side
from dark3r_ros.types import Correspondences, Float64Array

T = TypeVar('T')

_AVERAGED = (4, 0.5)  # times as many frames as the newest keyframe, and the share of the most, that make a better one
_TURNING = 4  # newest keyframes whose turns are still learnt
_PATIENCE = 2.0  # how much farther the view may move before the work for the newest keyframe is done at once


class Growth:
    """Makes keyframes: matches, links, adjusts, and closes loops.

    While one is being made the camera is followed by the keyframes before it.

    Parameters
    ----------
    enforce: keeps the memory within its bounds. timed: measures a stage by its name.

    """

    def __init__(
        self,
        config: MappingConfig,
        predictor: Predictor,
        atlas: Atlas,
        log: PoseLog,
        judge: MotionJudge,
        bridges: OdometryBridges,
        hold: ScaleHold,
        enforce: Callable[[], None],
        timed: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._config, self._predictor, self._atlas, self._log, self._judge = config, predictor, atlas, log, judge
        self._bridges, self._hold = bridges, hold
        self._enforce, self._timed = enforce, timed
        self._chores = Chores(config.step_seconds)
        # The first view after the newest keyframe, and its camera_from_world.
        self._follower: tuple[View, Float64Array] | None = None
        self._urgent = False  # the newest keyframe cannot wait any longer
        self._unheard: list[Event] = []
        self.gate = LoopGate(config, predictor, atlas.places)

    # ------------------------------------------------------------------ when

    @property
    def busy(self) -> bool:
        """Whether a keyframe is being made."""
        return self._chores.busy

    def wanted(self, view: View, result: TrackResult, submap: Submap) -> bool:
        """Whether a tracked view should become a keyframe."""
        wanted = needs_keyframe(result, submap.baseline, self._config) or self._is_better(view, submap)
        if self.busy and self._follower is None and result.camera_from_world is not None:
            self._follower = view, result.camera_from_world
        if wanted and self.busy:
            # The newest keyframe is not ready yet: what it brings is needed before another one.
            self._urgent = needs_keyframe(result, submap.baseline, self._config, _PATIENCE)
            return False
        if submap.baseline is None and not wanted:
            submap.baseline = result
        return wanted

    def _is_better(self, view: View, submap: Submap) -> bool:
        """Whether a view is the average of many more frames than the newest keyframe: the next ones rely on it."""
        enough = max(_AVERAGED[0], _AVERAGED[1] * self._config.rest_frames)
        return view.averaged >= max(enough, _AVERAGED[0] * submap.map.keyframes[-1].averaged)

    def begin(self, view: View, result: TrackResult, submap: Submap) -> None:
        """Start to make a keyframe of a tracked view."""
        assert result.camera_from_world is not None
        neighbours = submap.around(result.landmarks)[: self._config.neighbours]
        keyframe = new_keyframe(submap.map, view, result.camera_from_world, neighbours)
        self._follower = None
        self._chores.begin(self._grow(submap, keyframe, view, result, neighbours))

    def advance(self, stamp_ns: int) -> list[Event]:
        """Do as much as the time since the frame before pays for, and join what odometry connects."""
        events = self._chores.advance(stamp_ns)
        if self._urgent:  # after the pose, which need not wait for it
            events += self._chores.finish()
        self._urgent = False
        return self._heard(events if self.busy else [*events, *self._cross()])

    def finish(self) -> list[Event]:
        """Do all that is left."""
        return self._heard(self._chores.finish())

    def finish_unheard(self) -> None:
        """Do all that is left; what happens is told later."""
        self._unheard += self._chores.finish()

    def drop(self) -> None:
        """Forget what is left: its map is gone."""
        self._chores.drop()

    def _heard(self, events: list[Event]) -> list[Event]:
        unheard, self._unheard = self._unheard, []
        return unheard + events

    # ------------------------------------------------------------------ how

    def _grow(
        self, submap: Submap, keyframe: Keyframe, view: View, result: TrackResult, neighbours: Sequence[Keyframe]
    ) -> Iterator[list[Event]]:
        """Make a keyframe a part of the map, one piece of the work at a time."""
        predictor = self._predictor
        partners = [neighbour for neighbour in neighbours if neighbour.features is not None]
        located = partners[self._config.whole_neighbours :] if isinstance(predictor, Locator) else []
        whole = partners[: len(partners) - len(located)]
        # All matches come first: a new landmark is seen from the widest angle that any of the neighbours offers.
        matches: list[Correspondences] = []
        batches = [whole] if isinstance(predictor, Locator) else [[neighbour] for neighbour in whole]
        for batch in batches:
            with self._timed('keyframe'):
                pairs = [(neighbour.features, keyframe.features) for neighbour in batch]
                matches += side_by_side(lambda pair: predictor.match([pair])[0], pairs)
            yield []
        if located:
            with self._timed('keyframe'):
                near = Expectation(keyframe.camera_from_world, self._config.linked_reach or math.inf, 0.0)
                support = submap.map.support()
                tasks = [(neighbour, sought(neighbour, support, predictor, self._config)) for neighbour in located]
                matches += side_by_side(
                    lambda task: locate_near(task[0], keyframe, task[1], predictor, submap.map, near), tasks
                )
            yield []
        with self._timed('keyframe'):
            submap.map.keyframes.append(keyframe)
            self._learn_turns(submap)
            link_matched(submap.map, keyframe, partners, matches, self._config, view)
        self._hold.remember(submap)
        with self._timed('window'):
            expected, straighten = partial(self._hold.expected_places, submap), partial(self._hold.straighten, submap)
            before = keyframe.camera_from_world
            moved, _ = refine_window(submap.map, self._config, neighbours, expected=expected, straighten=straighten)
            self._carry(submap, se3.inverse(keyframe.camera_from_world) @ before)
        self._hold.see_ground(submap)
        self.now_keyframe(keyframe, result)
        submap.baseline = self._first_seen(submap, keyframe)
        submap.archive.retire(submap.map)
        self._enforce()
        yield [keyframe_added(keyframe, submap), keyframes_moved(moved, submap)]
        yield []  # that was worth two pieces
        events: list[Event] = []
        if self._config.loops:
            considered = self.gate.consider_in_steps(keyframe, submap, self._atlas.submaps)
            evidence = yield from self._in_pieces(considered)
            if evidence:
                events = yield from self._close(evidence, submap)
        yield [*events, *self._leap(submap), *self._stretch()]
        self._enforce()

    def _learn_turns(self, submap: Submap) -> None:
        """Let rolling cameras of the newest keyframes turn as the frames since then say."""
        newest = submap.map.keyframes[-_TURNING:]
        for keyframe in newest:
            if isinstance(keyframe.camera, RollingCamera):
                around = self._log.around(keyframe.stamp_ns, newest, 2)
                keyframe.camera = turning_among(keyframe.camera, around)

    def _carry(self, submap: Submap, new_from_old: Float64Array) -> None:
        """Let what was known of the camera's motion move with the newest keyframe."""
        submap.carry(new_from_old)
        if submap is self._atlas.active:
            self._judge.carry(new_from_old)

    def _first_seen(self, submap: Submap, keyframe: Keyframe) -> TrackResult | None:
        """How much of a new keyframe the view right after it sees; later ones, when it is ready, see less already."""
        if self._follower is None:
            return None
        view, pose = self._follower
        reach, share = self._config.expected_reach, self._config.expected_share
        expectation = Expectation(pose, reach, share) if reach else None
        result = track(view, [keyframe], submap.map, self._predictor, self._config, expectation)
        return None if result.camera_from_world is None else result

    def now_keyframe(self, keyframe: Keyframe, result: TrackResult) -> None:
        """Log that a view has become a keyframe, which can be recognised from now on."""
        self._atlas.places.add(keyframe)
        pose = keyframe.camera_from_world
        self._log.pose(keyframe.stamp_ns, keyframe, pose, result.inliers, result.matches, True)

    # ------------------------------------------------------------------ loops

    def _in_pieces(self, steps: Generator[None, None, T]) -> Generator[list[Event], None, T]:
        """Work on loops, with its time measured; what comes of it at the end."""
        while True:
            try:
                with self._timed('loops'):
                    next(steps)
            except StopIteration as end:
                found: T = end.value
                return found
            yield []

    def _close(self, evidence: list[Evidence], submap: Submap) -> Generator[list[Event], None, list[Event]]:
        """Close a loop, or join the submap with that of the place."""
        if evidence[-1].old is not submap:
            with self._timed('loops'):
                return self.join(evidence, submap)
        scales = yield from self._in_pieces(spread_error_in_steps(submap, evidence))
        if scales is None:
            self.gate.refused['against the graph'] += 1
            return []
        self.gate.accepted += 1
        self._judge.moved()
        self._bridges.restart()
        self._log.rescale(submap.map.keyframes, scales)
        yield [keyframes_moved(submap.map.keyframes, submap)]
        with self._timed('loops'):
            return [keyframes_moved(tie_places(submap, evidence, self._config), submap)]

    def join(self, evidence: list[Evidence], submap: Submap) -> list[Event]:
        """Join a submap with that of the places its keyframes recognised."""
        joined, moved, growth = join_submaps(self._atlas, evidence, submap, self._config)
        self.gate.accepted += 1
        self._bridges.restart()
        return self._joined(joined, moved, growth)

    def _cross(self) -> list[Event]:
        """Join submaps that odometry connects."""
        bridge = self._bridges.across(self._atlas.submaps)
        if bridge is None:
            return []
        joined, moved, similarity = self._atlas.bridge(bridge)
        self._bridges.crossed(bridge, joined, similarity)
        return self._joined(joined, moved, similarity.scale)

    def _stretch(self) -> list[Event]:
        """Put the scale behind the newest bridge right."""
        stretch = self._bridges.stretch()
        return [] if stretch is None else self._move(stretch.submap, stretch.nodes())

    def _leap(self, submap: Submap) -> list[Event]:
        """Put the newest keyframes right where their unit has leapt."""
        # A loop may have made it a part of another map.
        nodes = self._hold.leap(submap) if submap is self._atlas.active else None
        if nodes is None:
            return []
        self._bridges.restart()
        return self._move(submap, nodes)

    def _move(self, submap: Submap, nodes: list[Similarity]) -> list[Event]:
        """Move all of a map, each keyframe to its node."""
        submap.move(nodes)
        self.gate.forget()
        self._judge.moved()
        self._log.rescale(submap.map.keyframes, [node.scale for node in nodes])
        return [keyframes_moved(submap.map.keyframes, submap)]

    def _joined(self, joined: Submap, moved: list[Keyframe], growth: float) -> list[Event]:
        self.gate.forget()
        self._judge.restart()
        self._log.rescale(moved, [growth] * len(moved))
        events = frames_joined(moved, joined, self._log)
        return [*events, keyframes_moved(joined.map.keyframes, joined)]
