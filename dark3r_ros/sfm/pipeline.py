# SPDX-License-Identifier: Apache-2.0
"""The offline reconstruction: views, pairs, a start, adjustment, late views."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.matching.mini import MiniFeatures, MiniPredictor
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.sfm.adjusting import Adjuster
from dark3r_ros.sfm.chain import time_order
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.dense import depth_maps
from dark3r_ros.sfm.focal import guessed, rescaled, scaled_view, search_focal
from dark3r_ros.sfm.fusion import fuse
from dark3r_ros.sfm.graph import pair_graph, poor_views
from dark3r_ros.sfm.held import hold_unit
from dark3r_ros.sfm.late import pose_remaining, supported
from dark3r_ros.sfm.pairs import VerifiedPair, all_still, match_pair
from dark3r_ros.sfm.pooled import PooledOptions, pooled_in_rounds
from dark3r_ros.sfm.progress import Progress, cpu_workers, ordered_map, quiet
from dark3r_ros.sfm.refine import Refined
from dark3r_ros.sfm.rematch import rematch, rematched_tracks
from dark3r_ros.sfm.result import build_reconstruction, world_poses
from dark3r_ros.sfm.scale import scaled_covariance
from dark3r_ros.sfm.scale_trust import ScaleTrust, scale_trust
from dark3r_ros.sfm.shards import Shard
from dark3r_ros.sfm.spill import spilled
from dark3r_ros.sfm.start import first_poses
from dark3r_ros.sfm.store import PairStore
from dark3r_ros.sfm.tracks import Tracks, build_tracks, merge_stars
from dark3r_ros.sfm.triangulation import Structure
from dark3r_ros.sfm.trust import check_neighbours
from dark3r_ros.sfm.views import View, median_focal, take_views
from dark3r_ros.types import DepthMap, Frame, Reconstruction, Trajectory

Array = NDArray[np.float64]

STAGES = ('encode', 'pairs', 'start', 'adjust', 'rematch', 'late', 'pool', 'dense')
# Features of this many views are held in memory, 0.5 GB at 320x240; those of further ones lie on disk.
_HELD_VIEWS = 300
# Planes of this many views are held in memory, 0.2 GB at 320x240: with more no evidence is pooled.
_PLANES_HELD = PooledOptions().most_views
# Poses that pool evidence are refused when fewer than this share of the observations agrees with them.
_POOLED_SHARE = 0.9
# The scale along a path is held by odometry where the matches know it worse than this.
_KNOWN_SCALE = 0.01
# Settings that the pairs depend on.
_PAIR_SETTINGS = (
    'binning',
    'network_width',
    'min_inliers',
    'min_inlier_share',
    'min_cells',
    'max_error',
    'complete_views',
    'temporal_window',
    'nearest_views',
    'pair_matches',
)


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the views are, before anything is made of it for others.

    Attributes
    ----------
    views: as they were used in the end. pairs: of them, without those that only look alike.
    poses: camera_from_world by view. structure: the points that hold them. tracks: all that were tried.
    reasons: why a view would have no pose.

    """

    views: Sequence[View]
    pairs: Sequence[VerifiedPair]
    poses: dict[int, Array]
    structure: Structure
    tracks: Tracks
    reasons: dict[int, str]


class ShardDone(Exception):  # noqa: N818, an end and no error
    """A helping process has made its share of the pairs; another one goes on."""


@dataclass(eq=False)
class SfmRun:
    """One reconstruction being made, and afterwards what its report says.

    Attributes
    ----------
    work: folder where finished pairs are kept, so that a run that was killed goes on; None keeps nothing.
    odometry: of any body fixed to the camera, holds the unit along the path where the matches do not.
    seconds: wall time by stage. notes: choices made and what was found, for the report.
    depths: depth map by frame, where they were made. views: the frames as they were used. pairs: of them, matched.
    covariance: (6, 6) of the left twist of camera_from_world (translation, rotation) by frame.
    warnings: lines that the user should read.

    """

    config: SfmConfig
    predictor: Predictor
    noise: NoiseModel | None = None
    progress: Progress = quiet
    work: Path | None = None
    odometry: Trajectory | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    notes: dict[str, Any] = field(default_factory=dict)
    depths: dict[int, DepthMap] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    covariance: dict[int, Array] = field(default_factory=dict)
    pairs: list[VerifiedPair] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __call__(self, frames: Iterable[Frame], expected: int = 0) -> Reconstruction:
        """Reconstruct frames in any order of time; views without a pose say why.

        Raises ReconstructionError when no frame is calibrated.
        """
        with self._timed('encode'):
            views = self._views(frames, expected)
        return self._finish(self.solve(views))

    def solve(self, views: list[View], known: Mapping[str, dict[int, Array]] | None = None) -> Solution:
        """All stages between encoded views and a map: pairs, start, adjustments.

        `known` are poses camera_from_world found elsewhere, by the name of their method, that may be the start.
        """
        self.views = views
        with self._timed('pairs'):
            self.pairs = pairs = self._pairs(views)
        with self._timed('start'):
            poses, pairs = self._start(views, pairs, known or {})
        tracks = build_tracks(views, pairs)
        if not poses:
            return Solution(views, pairs, {}, _nothing(tracks), tracks, self._reasons(views, pairs))
        with self._timed('adjust'):
            refined = self._adjuster.refined(tracks, poses, views)
        if not self.config.fix_intrinsics:
            with self._timed('adjust'):
                tracks, refined, views = self._with_focal(tracks, refined, views)
        with self._timed('late'):
            refined = self._late(tracks, refined, views)
        for _ in range(self.config.rematch_rounds):
            tracks, refined = self._rematched(tracks, refined, views)
        kept = supported(pairs, refined.poses, refined.structure, views, self.config)
        dropped = sorted(set(refined.poses) - kept)
        reasons = self._reasons(views, pairs)
        reasons |= dict.fromkeys(dropped, 'its pose disagrees with the matches of its pairs')
        if dropped and kept:
            with self._timed('adjust'):
                refined = self._adjuster.refined(
                    tracks, {number: refined.poses[number] for number in sorted(kept)}, views
                )
        if not kept:
            return Solution(views, pairs, {}, _nothing(tracks), tracks, reasons)
        with self._timed('adjust'):
            self._check_focal(tracks, refined, views)
            refined = self._adjuster.with_covariance(tracks, refined, views)
            self.covariance = refined.covariance
            trust = self._scale_trust(refined, views)
        refined = self._pooled(tracks, refined, views)
        refined = self._held(tracks, refined, views, trust)
        self._check_order(self.pairs, refined, views)
        return Solution(views, pairs, refined.poses, refined.structure, tracks, reasons)

    # ------------------------------------------------------------------ stages

    @property
    def _adjuster(self) -> Adjuster:
        return Adjuster(self.config, self.progress)

    def _views(self, frames: Iterable[Frame], expected: int) -> list[View]:
        """Frames as views; those without calibration get a guessed one where the focal length is to be found."""
        unknown = 0

        def offered() -> Iterator[Frame]:
            nonlocal unknown
            for frame in frames:
                missing = frame.camera is None and not self.config.fix_intrinsics
                unknown += missing
                yield guessed(frame) if missing else frame

        taken = take_views(offered(), self.predictor, self.config, self.noise)
        views = [self._kept(view, number) for number, view in enumerate(self.progress(taken, expected, 'encoding'))]
        if unknown:
            factor = search_focal(views, self.predictor, self.config.max_error)
            views = [scaled_view(view, factor) for view in views]
        self.notes['without_calibration'] = unknown
        return views if len(views) <= _PLANES_HELD else [replace(view, planes=None) for view in views]

    def _kept(self, view: View, number: int) -> View:
        """The view, its planes only where few came before it, its features on disk where many did."""
        if number >= _PLANES_HELD:
            view = replace(view, planes=None)
        if number < _HELD_VIEWS or not isinstance(view.features, MiniFeatures):
            return view
        return replace(view, features=spilled(view.features, self.work or Path(tempfile.gettempdir())))

    def _with_focal(self, tracks: Tracks, refined: Refined, views: list[View]) -> tuple[Tracks, Refined, list[View]]:
        """Give all views the focal length that the matches want, and adjust with it."""
        check = self._adjuster.wanted_focal(tracks, refined, views)
        if check is None or not check.contradicts(2.0 * check.deviation, 2.0):
            return tracks, refined, views
        self.notes['focal_scale'] = check.scale
        self.views = views = [scaled_view(view, check.scale) for view in views]
        tracks = rescaled(tracks, views)
        return tracks, self._adjuster.refined(tracks, refined.poses, views), views

    def _pairs(self, views: Sequence[View]) -> list[VerifiedPair]:
        """Verified pairs, from disk where an earlier run or another process made them. Raises ShardDone in helpers."""
        shard = Shard.of_environment()
        graph = pair_graph(views, self.config)
        with ExitStack() as stack:
            folder = self.work or Path(stack.enter_context(TemporaryDirectory(prefix='dark3r_sfm_')))
            store = PairStore(folder, self._identity(views), shard.rank)
            stack.callback(store.close)
            done = store.done()
            missing = [pair for pair in shard.share(graph) if pair not in done]
            made = ordered_map(
                lambda pair: match_pair(pair, views, self.predictor, self.config), missing, self._workers()
            )
            for pair, result in zip(missing, self.progress(made, len(missing), 'pairs'), strict=True):
                store.add(pair, result)
            shard.wait()
            if not shard.leads:
                raise ShardDone
            found = {pair: result for pair, result in store.read() if result is not None}
        pairs = [found[pair] for pair in graph if pair in found]
        self.notes['pairs'] = {
            'tried': len(graph),
            'verified': len(pairs),
            'resumed': len(done & set(graph)),
            'matches': sum(pair.support for pair in pairs),
        }
        return pairs

    def _workers(self) -> int:
        """Threads that match pairs: several where the network runs on the processor and is known to allow it."""
        local = isinstance(self.predictor, MiniPredictor) and self.predictor.device.type == 'cpu'
        return cpu_workers() if local else 1

    def _identity(self, views: Sequence[View]) -> dict[str, object]:
        """What stored pairs belong to."""
        stamps = json.dumps(
            [[view.stamp_ns, view.name, view.usable, view.camera and view.focal] for view in views]
        ).encode()
        return {
            'predictor': self.predictor.fingerprint,
            'config': {name: getattr(self.config, name) for name in _PAIR_SETTINGS},
            'views': len(views),
            'format': 2,
            'stamps': hashlib.blake2b(stamps, digest_size=8).hexdigest(),
        }

    def _start(
        self, views: Sequence[View], pairs: list[VerifiedPair], known: Mapping[str, dict[int, Array]]
    ) -> tuple[dict[int, Array], list[VerifiedPair]]:
        """First poses of the views that are good enough to build upon, and the pairs not refused."""
        poor = poor_views(views, self.config.poor_share)
        if all_still(pairs):
            # Noise alone would be taken for motion.
            self.notes['start'] = {'method': 'none', 'posed': 0}
            return {}, pairs
        good = [pair for pair in pairs if pair.first not in poor and pair.second not in poor]
        self.notes['set_aside'] = sorted(poor)
        start = first_poses(views, good or pairs, self.predictor, self.config, self.progress, known)
        self.notes['start'] = start.note
        return start.poses, [pair for pair in pairs if (pair.first, pair.second) not in start.refused]

    def _pooled(self, tracks: Tracks, refined: Refined, views: Sequence[View]) -> Refined:
        """Poses that pool the evidence of all matches, weak ones too, unless fewer points agree with them."""
        if not (self.config.pool and isinstance(self.predictor, MiniPredictor)):
            return refined
        with self._timed('pool'):
            found = pooled_in_rounds(
                views,
                refined.poses,
                refined.structure,
                self.predictor,
                lambda poses: self._adjuster.triangulated(tracks, poses, views),
                workers=self._workers(),
                progress=self.progress,
            )
        if found is None:
            return refined
        poses, structure, rounds = found
        before, after = len(refined.structure.tracks.point), len(structure.tracks.point)
        taken = after >= _POOLED_SHARE * before
        counts = {'observations_before': before, 'observations_after': after}
        self.notes['pooled'] = {'taken': taken, 'rounds': rounds, **counts}
        return replace(refined, poses=poses, structure=structure) if taken else refined

    def _check_focal(self, tracks: Tracks, refined: Refined, views: Sequence[View]) -> None:
        """Warn when the matches clearly want another focal length than the one given."""
        check = self._adjuster.wanted_focal(tracks, refined, views)
        if check is None:
            return
        wrong = check.contradicts()
        self.notes['focal'] = {'wanted_scale': check.scale, 'deviation': check.deviation, 'contradicts': wrong}
        if wrong:
            given = next(view.full_camera.fx for view in views if view.full_camera is not None)
            self.warnings.append(
                f'the focal length given, {given:.1f} px, disagrees with the matches: {given * check.scale:.1f} px '
                f'(+- {100 * check.deviation:.1f} %) fits them; check the calibration and the size that it belongs to'
            )

    def _scale_trust(self, refined: Refined, views: Sequence[View]) -> ScaleTrust | None:
        """How well the matches know the scale of one end of the path from the other."""
        order = time_order(views, self.pairs)
        trust = scale_trust(refined.structure, refined.poses, order, median_focal(views, refined.poses))
        if trust is not None:
            self.notes['scale'] = {'deviation': trust.worst, **asdict(trust)}
        return trust

    def _held(self, tracks: Tracks, refined: Refined, views: Sequence[View], trust: ScaleTrust | None) -> Refined:
        """Hold the unit along the path by odometry where the matches do not, or say how doubtful it is."""
        if trust is None:
            return refined
        held = None
        if self.odometry is not None and trust.worst > _KNOWN_SCALE:
            held = hold_unit(refined.poses, views, self.odometry)
        if held is not None:
            structure = self._adjuster.triangulated(tracks, held.poses, views)
            agreeing = len(structure.tracks.point) / max(len(refined.structure.tracks.point), 1)
            taken = agreeing >= _POOLED_SHARE
            self.notes['held'] = {'taken': taken, 'agreeing': agreeing, **held.note}
            if taken:
                for number, matrix in self.covariance.items():
                    self.covariance[number] = scaled_covariance(matrix, held.growth[number])
                return replace(refined, poses=held.poses, structure=structure)
        if (warning := trust.warning(self.odometry is not None)) is not None:
            self.warnings.append(warning)
        return refined

    def _check_order(self, pairs: Sequence[VerifiedPair], refined: Refined, views: Sequence[View]) -> None:
        """Warn where next neighbours in time contradict the poses: a path that folds or jumps."""
        chain = self.notes['start'].get('tried', {}).get('ordered', {})
        check = check_neighbours(pairs, refined, views, self.config, chain.get('stands', False))
        if check is None:
            return
        self.notes['neighbours'] = {'fitting': check.fitting, 'breaks': check.breaks}
        if check.breaks:
            self.warnings.append(check.warning(views))

    def _late(self, tracks: Tracks, refined: Refined, views: Sequence[View]) -> Refined:
        """Resect views without a pose until a whole round brings nothing new."""
        added, barred = 0, self.notes['start'].get('ambiguous', ())
        while True:
            found = pose_remaining(tracks, refined.structure, refined.poses, views, self.config, barred)
            if not found:
                break
            added += len(found)
            refined = self._adjuster.refined(tracks, {**refined.poses, **found}, views)
        self.notes['posed_late'] = added
        return refined

    def _rematched(self, tracks: Tracks, refined: Refined, views: Sequence[View]) -> tuple[Tracks, Refined]:
        """Look for all anchors again where they must lie, with a predictor that can, and adjust."""
        if not isinstance(self.predictor, MiniPredictor):
            return tracks, refined
        with self._timed('rematch'):
            found = rematch(views, refined.poses, refined.structure, self.predictor)
            again = rematched_tracks(views, self.progress(found, len(refined.poses), 'matching again'))
            tracks = merge_stars(views, tracks, again)
        with self._timed('adjust'):
            return tracks, self._adjuster.refined(tracks, refined.poses, views)

    def _reasons(self, views: Sequence[View], pairs: Sequence[VerifiedPair]) -> dict[int, str]:
        paired = {number for pair in pairs for number in (pair.first, pair.second)}
        reasons = {
            number: 'its matches are too few or do not agree' if number in paired else 'no view sees the same'
            for number in range(len(views))
        }
        if all_still(pairs):
            reasons |= dict.fromkeys(paired, 'all views that share matches were taken from one place: move the camera')
        ambiguous = self.notes.get('start', {}).get('ambiguous', ())
        return reasons | dict.fromkeys(ambiguous, 'its matches fit several poses equally well')

    def _finish(self, found: Solution) -> Reconstruction:
        views, poses, structure = found.views, found.poses, found.structure
        reconstruction = build_reconstruction(views, poses, structure, found.tracks, found.reasons)
        if not (self.config.dense and poses and isinstance(self.predictor, MiniPredictor)):
            return reconstruction
        with self._timed('dense'):
            self.depths = depth_maps(views, poses, structure, self.predictor, progress=self.progress)
            cloud = fuse(self.depths, views, world_poses(reconstruction))
        return replace(reconstruction, cloud=cloud) if len(cloud) else reconstruction

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


def _nothing(tracks: Tracks) -> Structure:
    return Structure(tracks.select(np.zeros(len(tracks.point), dtype=bool)), np.zeros((0, 3)))
