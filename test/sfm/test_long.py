# SPDX-License-Identifier: Apache-2.0
"""Long recordings: what is done for all views at once is what a plain form says of each, at any scale."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from star_world import CAMERA, StarPredictor, camera_path, frames, hit

from dark3r_ros.geometry import se3
from dark3r_ros.sfm import start
from dark3r_ros.sfm.bundle import adjust
from dark3r_ros.sfm.chain import Chain, adjusted, seen_from, step_length
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.late import agreeing, known_points, supported
from dark3r_ros.sfm.pairs import match_pair
from dark3r_ros.sfm.refine import refine
from dark3r_ros.sfm.rematch import covisible, depth_ranges, neighbours
from dark3r_ros.sfm.resection import resect
from dark3r_ros.sfm.start_ordered import OrderedStart
from dark3r_ros.sfm.store import PairStore
from dark3r_ros.sfm.tracks import build_tracks, expected_error, merge_stars, normalise_pixels, rows_by
from dark3r_ros.sfm.triangulation import triangulate_tracks
from dark3r_ros.sfm.views import take_view

CONFIG = SfmConfig(network_width=160)
COUNT = 9
NARROWING = 0.75  # of the cone by each step
STEPS = 72  # 0.75^72 is 1e-9


@pytest.fixture(scope='module')
def world():
    """Views, all their pairs, tracks, true poses camera_from_world and the structure of those with one."""
    truth = camera_path(COUNT)
    predictor = StarPredictor(truth)
    views = [take_view(frame, predictor, CONFIG) for frame in frames(COUNT)]
    keys = [(first, second) for first in range(COUNT) for second in range(first + 1, COUNT)]
    pairs = [pair for key in keys if (pair := match_pair(key, views, predictor, CONFIG)) is not None]
    tracks = build_tracks(views, pairs)
    poses = {number: se3.inverse(pose) for number, pose in enumerate(truth) if number not in (3, 8)}
    structure = triangulate_tracks(tracks, poses, views[0].focal, 2.0, 0.005)
    return SimpleNamespace(views=views, pairs=pairs, tracks=tracks, poses=poses, structure=structure)


def test_rows_by_number():
    index = np.random.default_rng(0).choice([2, 3, 7, 11], 200)
    found = dict(rows_by(index))
    assert list(found) == [2, 3, 7, 11]
    for number, rows in found.items():
        np.testing.assert_array_equal(rows, np.flatnonzero(index == number))
    assert dict(rows_by(index[:0])) == {}


def test_pixels_are_undistorted_by_the_camera_of_their_own_view():
    rng = np.random.default_rng(1)
    cameras = [replace(CAMERA, fx=200.0 + 30.0 * number) for number in range(4)]
    views = [SimpleNamespace(normalised=camera.unproject) for camera in cameras]
    view, pixels = rng.integers(0, 4, 50), rng.uniform(0, 100, (50, 2))
    found = normalise_pixels(views, view, pixels)
    expected = [cameras[number].unproject(pixel[None])[0] for number, pixel in zip(view, pixels, strict=True)]
    np.testing.assert_array_equal(found, expected)


def test_known_points_are_those_of_one_view_after_another(world):
    tracks, structure = world.tracks, world.structure
    found = known_points(tracks, structure, [8, 3, 100])
    assert list(found) == [8, 3, 100]
    assert len(found[100][0]) == len(found[100][1]) == 0
    names = {
        (int(structure.tracks.view[row]), int(anchor)): point
        for point, (row, anchor) in enumerate(zip(structure.tracks.centre, structure.tracks.anchor, strict=True))
    }
    for number in (3, 8):
        expected = []
        for row in np.flatnonzero(tracks.view == number):
            point = tracks.point[row]
            name = int(tracks.view[tracks.centre[point]]), int(tracks.anchor[point])
            if name in names:
                expected.append((row, names[name]))
        assert len(expected) > 50
        np.testing.assert_array_equal(np.column_stack(found[number]), expected)


def test_views_are_set_aside_as_if_all_were_counted_anew_each_time(world):
    rng = np.random.default_rng(2)
    poses = {number: se3.exp(rng.normal(0, 1, 6) * 0.03 * (number % 4)) @ pose for number, pose in world.poses.items()}
    for least in (0.3, 0.6, 0.9, 1.0):
        config = replace(CONFIG, min_agreement=least, min_inliers=8)
        good = {
            (pair.first, pair.second): agreeing(pair, poses, world.views, 1.5 * config.max_error)
            for pair in world.pairs
        }
        kept = set(poses)
        while kept:
            inside = [pair for pair in world.pairs if pair.first in kept and pair.second in kept]
            share = {}
            for number in kept:
                mine = [pair for pair in inside if number in (pair.first, pair.second)]
                total = sum(pair.support for pair in mine)
                share[number] = sum(good[pair.first, pair.second] for pair in mine) / total if total else 0.0
            worst = min(kept, key=lambda number: (share[number], number))
            if share[worst] >= least:
                break
            kept.remove(worst)
        found = supported(world.pairs, poses, world.structure, world.views, config)
        # Of the views that are left those that hang together count: here all or none.
        assert found <= kept
        strong = [p for p in world.pairs if good[p.first, p.second] >= max(8, 0.5 * p.support)]
        held = {n for p in strong if {p.first, p.second} <= kept for n in (p.first, p.second)}
        assert found == held


def test_views_that_share_points_are_those_of_the_dense_matrix(world):
    tracks = world.structure.tracks
    dense = np.zeros((COUNT, COUNT))
    for point in range(len(tracks)):
        seen = tracks.view[tracks.point == point]
        dense[np.ix_(seen, seen)] += 1.0
    np.fill_diagonal(dense, 0.0)
    np.testing.assert_array_equal(covisible(world.structure, COUNT).toarray(), dense)
    least = int(np.median(dense[dense > 0]))
    found = neighbours(world.structure, world.poses, 4, least)
    for number in world.poses:
        order = sorted(range(COUNT), key=lambda other: (-dense[number, other], other))[:4]
        assert found[number] == [other for other in order if dense[number, other] >= least]


def test_depths_worth_a_look_are_those_of_the_points_that_a_view_sees(world):
    found = depth_ranges(world.structure, world.poses)
    assert sorted(found) == sorted(world.poses)
    for number, (near, far) in found.items():
        rows = world.structure.tracks.view == number
        points = world.structure.points[world.structure.tracks.point[rows]]
        depth = se3.transform_points(world.poses[number], points)[:, 2]
        np.testing.assert_allclose((near, far), np.percentile(depth, (1, 99)) * (0.7, 1.6))


def test_the_window_of_a_chain_are_the_nearest_posed_views():
    order = [5, 2, 9, 0, 1, 14, 3, 4, 8, 6, 7, 12, 10, 13, 11]
    chain = Chain(order, [], [], CONFIG)
    place = {number: rank for rank, number in enumerate(order)}
    rng = np.random.default_rng(3)
    for size in (1, 4, 11, 15):
        poses = dict.fromkeys(rng.permutation(15)[:size].tolist(), np.eye(4))
        for number in order:
            nearest = sorted(poses, key=lambda other: (-abs(place[other] - place[number]), other))[-10:]
            assert chain._window(number, poses) == nearest


def test_a_pair_in_a_file_is_the_pair_that_was_put_there(world, tmp_path):
    store = PairStore(tmp_path, {'run': 1})
    store.add((7, 9), None)
    for pair in world.pairs[:3]:
        store.add((pair.first, pair.second), pair)
    store.close()
    assert store.done() == {(7, 9), *((pair.first, pair.second) for pair in world.pairs[:3])}
    read = dict(store.read())
    assert read.pop((7, 9)) is None
    other = PairStore(tmp_path, {'run': 2})  # takes the place of the file while it is read
    other.add((0, 1), world.pairs[5])
    other.close()
    (tmp_path / 'pairs-0.bin').unlink()
    for pair, found in zip(world.pairs, read.values(), strict=False):
        kept = found.verified()
        for name in ('first', 'second', 'star', 'tried', 'support'):
            assert getattr(found, name) == getattr(pair, name)
        for name in ('pixels_first', 'pixels_second', 'identity_first', 'identity_second', 'confidence', 'agrees'):
            held, expected = getattr(found, name), getattr(pair, name)
            assert held.dtype == expected.dtype
            np.testing.assert_array_equal(held, expected.astype(np.float32).astype(held.dtype))
            np.testing.assert_array_equal(getattr(kept, name), held[found.agrees])
        np.testing.assert_array_equal(found.second_from_first, pair.second_from_first)
        assert len(found) == len(pair)
        assert found.parallax == pair.parallax


def stars_of(pairs):
    """By view and anchor: its pixels, and by other view the pixels and confidence of where it was found there."""
    stars = {}
    for pair in pairs:
        for match in range(len(pair)):
            first = pair.first, pair.identity_first[match], pair.pixels_first[match]
            second = pair.second, pair.identity_second[match], pair.pixels_second[match]
            for own, other in ((first, second), (second, first)):
                if own[1] >= 0:
                    star = stars.setdefault((own[0], int(own[1])), (own[2], {}))
                    star[1][other[0]] = other[2], pair.confidence[match]
    return stars


def assert_are_stars(tracks, stars):
    names = sorted(stars)
    assert tracks.anchor.tolist() == [anchor for _, anchor in names]
    for point, name in enumerate(names):
        rows = np.flatnonzero(tracks.point == point)
        centre, found = stars[name]
        assert tracks.view[rows].tolist() == [name[0], *sorted(found)]
        np.testing.assert_array_equal(tracks.pixels[rows], [centre, *(found[view][0] for view in sorted(found))])
        errors = np.array([expected_error(found[view][1]) for view in sorted(found)])
        np.testing.assert_allclose(tracks.sigma[rows], [0.65 * errors.mean(), *errors])


def test_stars_are_every_keypoint_with_all_its_places(world):
    assert_are_stars(world.tracks, stars_of(world.pairs))


def test_of_a_place_in_two_sets_of_stars_the_first_counts(world):
    moved = [replace(pair, confidence=0.1 * pair.confidence) for pair in world.pairs]
    first, second = world.pairs[:20], moved[10:]
    merged = merge_stars(world.views, build_tracks(world.views, first), build_tracks(world.views, second))
    known = {(pair.first, pair.second) for pair in first}
    assert_are_stars(merged, stars_of([*first, *(p for p in second if (p.first, p.second) not in known)]))


def test_tracks_of_verified_matches_are_those_of_verified_pairs(world):
    found = build_tracks(world.views, world.pairs, verified=True)
    expected = build_tracks(world.views, [pair.verified() for pair in world.pairs])
    assert len(found.point) < len(world.tracks.point)
    for name in ('point', 'view', 'pixels', 'normalised', 'sigma', 'anchor'):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_few_views_of_many_are_adjusted_as_if_they_were_all(world):
    start = {number: se3.exp(0.01 * np.ones(6) * (number % 3)) @ pose for number, pose in world.poses.items()}
    kwargs = {'errors': (4.0, 2.0), 'held': (0, 1), 'with_covariance': True}
    tracks = replace(world.tracks, view=1000 * world.tracks.view)
    plain = refine(world.tracks, start, world.views[0].focal, **kwargs)
    problems = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'dark3r_ros.sfm.refine.adjust', lambda *args, **kw: problems.append(args[0]) or adjust(*args, **kw)
        )
        far = {1000 * number: pose for number, pose in start.items()}
        found = refine(tracks, far, world.views[0].focal, **{**kwargs, 'held': (0, 1000)})
    assert [len(problem.cameras_from_world) for problem in problems] == [len(start)] * 2
    for number, pose in plain.poses.items():
        np.testing.assert_allclose(found.poses[1000 * number], pose, atol=1e-10)
        np.testing.assert_allclose(found.covariance[1000 * number], plain.covariance[number], rtol=1e-6, atol=1e-16)


@pytest.mark.slow
@pytest.mark.parametrize('twist', [np.radians(2.0), -1.0])  # the second: the beginning always counts as twisted
def test_a_chain_that_is_straightened_early_is_that_straightened_late(monkeypatch, twist):
    count = 36
    turns = [se3.exp_so3([0.02 * np.sin(0.9 * n), 0.06 * np.sin(0.7 * n), 0.0]) for n in range(count)]
    truth = np.stack([se3.make(turn, [0.5 * n, 0.1 * np.sin(n), 0.0]) for n, turn in enumerate(turns)])
    predictor = StarPredictor(truth, noise=0.3)
    views = [take_view(frame, predictor, CONFIG) for frame in frames(count)]
    keys = [(first, first + step) for first in range(count) for step in (1, 2) if first + step < count]
    pairs = [pair for key in keys if (pair := match_pair(key, views, predictor, CONFIG)) is not None]
    chain = Chain(range(count), pairs, views, CONFIG)
    nucleus = {number: se3.inverse(truth[number]) for number in range(5)}
    monkeypatch.setattr('dark3r_ros.sfm.chain._TWIST', twist)
    early = chain.mapped(nucleus)
    late = chain.straightened(chain.grown(nucleus), nucleus)
    assert sorted(early) == sorted(late) == list(range(count))
    for number, pose in late.items():
        np.testing.assert_array_equal(early[number], pose)


@pytest.mark.parametrize(('many', 'tried'), [(8, ['ordered']), (9, ['ordered', 'incremental'])])
def test_a_chain_of_many_views_may_leave_some_to_resection(world, monkeypatch, many, tried):
    poses = {number: world.poses[number] for number in sorted(world.poses)}
    found = OrderedStart(poses, 1.0, frozenset(), frozenset(), 0.0, 0.0, True)
    monkeypatch.setattr(start, 'start_in_order', lambda *_: found)
    monkeypatch.setattr(start, '_run', lambda *_: {})
    monkeypatch.setattr(start, '_methods', lambda *_: ['incremental'])
    monkeypatch.setattr(start, '_MANY', many)
    monkeypatch.setattr(start, '_LEFT_OUT', 0.3)
    monkeypatch.setattr(start, '_CLEAR', 0.4)
    monkeypatch.setattr(start, '_AGREEING', 0.4)
    made = start.first_poses(world.views, world.pairs, StarPredictor(camera_path(COUNT)), CONFIG)
    assert list(made.note['tried']) == tried
    assert made.poses is poses


# ---------------------------------------------------------------- a unit that drifts


@pytest.mark.parametrize('unit', [1e-12, 1e12])
def test_a_pose_is_found_in_any_unit(unit):
    pose = camera_path(5)[1]
    points = hit(pose, np.random.default_rng(4).uniform(-0.4, 0.4, (80, 2)))
    observed = se3.transform_points(se3.inverse(pose), points)
    observed = observed[:, :2] / observed[:, 2:]
    observed[:20] = np.random.default_rng(5).uniform(-0.4, 0.4, (20, 2))
    plain = resect(points, observed, 280.0, 2.0)
    moved = resect(unit * points, observed, 280.0, 2.0)
    assert plain is not None
    assert moved is not None
    np.testing.assert_array_equal(moved.inliers, plain.inliers)
    np.testing.assert_allclose(moved.camera_from_world[:3, :3], plain.camera_from_world[:3, :3], atol=1e-6)
    np.testing.assert_allclose(moved.camera_from_world[:3, 3] / unit, plain.camera_from_world[:3, 3], atol=1e-5)
    factor = np.array([unit] * 3 + [1.0] * 3)
    np.testing.assert_allclose(moved.covariance / factor[:, None] / factor, plain.covariance, rtol=1e-2, atol=1e-12)


def test_an_adjustment_is_the_same_in_any_unit():
    cameras = se3.inverse(camera_path(6))
    rng = np.random.default_rng(6)
    points = hit(camera_path(6)[2], rng.uniform(-0.3, 0.3, (60, 2)))
    frame, point = (part.ravel() for part in np.meshgrid(np.arange(6), np.arange(60)))
    local = np.einsum('kij,kj->ki', cameras[frame][:, :3, :3], points[point]) + cameras[frame][:, :3, 3]
    seen = local[:, :2] / local[:, 2:] + rng.normal(0, 0.5 / 280.0, (len(frame), 2))
    free = np.arange(6) >= 2
    start = se3.exp(rng.normal(0, 0.01, (6, 6)) * free[:, None]) @ cameras
    plain = adjust(BundleProblem(start, free, points, frame, point, seen, 280.0), 30, 1e-12)
    unit = 1e11
    far = start.copy()
    far[:, :3, 3] *= unit
    scaled = adjust(BundleProblem(far, free, unit * points, frame, point, seen, 280.0), 30, 1e-12)
    assert scaled.cost_after == pytest.approx(plain.cost_after, rel=1e-6)
    np.testing.assert_allclose(scaled.points / unit, plain.points, atol=1e-4)


class ConePredictor(StarPredictor):
    """The inside of a cone seen from its axis: every step towards its point shows the same picture, only smaller."""

    def _find(self, a, b, rng):
        slope = 0.5
        pose = self.poses[a]
        rays = np.column_stack([self.camera.unproject(self.anchors), np.ones(len(self.anchors))]) @ pose[:3, :3].T
        origin = pose[:3, 3]
        square = np.array([1.0, 1.0, -(slope**2)])
        two, one, none = rays**2 @ square, 2.0 * rays @ (square * origin), origin**2 @ square
        depth = (-one - np.sqrt(one**2 - 4.0 * two * none)) / (2.0 * two)
        other = (-one + np.sqrt(one**2 - 4.0 * two * none)) / (2.0 * two)
        depth = np.where((depth > 0) & ((other < 0) | (depth < other)), depth, other)
        # Seen from the second camera, whose small distance must not be the difference of two large ones.
        between = se3.inverse(self.poses[b]) @ pose
        local = depth[:, None] * (rays @ pose[:3, :3]) @ between[:3, :3].T + between[:3, 3]
        pixels = self.camera.project(np.where(local[:, 2:] > 0, local, (0.0, 0.0, 1.0)))
        limit = (self.camera.width - 1, self.camera.height - 1)
        seen = np.flatnonzero((local[:, 2] > 0) & (pixels >= 0).all(axis=1) & (pixels <= limit).all(axis=1))
        return seen, pixels[seen] + self.noise * rng.normal(size=(len(seen), 2))


@pytest.fixture(scope='module')
def cone():
    """Views on the way into a cone, pairs of neighbours, and the true poses world_from_camera."""
    looking_in = se3.make(np.diag([1.0, -1.0, -1.0]), [0.0, 0.0, 0.0])
    truth = []
    for number in range(STEPS):
        distance = NARROWING**number
        turn = se3.exp_so3([0.02 * np.sin(number), 0.02 * np.cos(0.7 * number), 0.0])
        place = distance * np.array([0.03 * np.sin(0.8 * number), 0.03 * np.cos(1.1 * number), 1.0])
        truth.append(se3.make(turn @ looking_in[:3, :3], place))
    truth = np.stack(truth)
    predictor = ConePredictor(truth, noise=0.1)
    views = [take_view(frame, predictor, CONFIG) for frame in frames(STEPS)]
    keys = [(first, first + step) for first in range(STEPS) for step in (1, 2) if first + step < STEPS]
    pairs = [pair.verified() for key in keys if (pair := match_pair(key, views, predictor, CONFIG)) is not None]
    return views, pairs, truth


def steps_of(poses, truth):
    """Errors of the turns in degrees and lengths over true ones, of all steps but the first few."""
    turns, lengths = [], []
    for number in range(len(poses) - 1):
        step = poses[number + 1] @ se3.inverse(poses[number])
        true = se3.inverse(truth[number + 1]) @ truth[number]
        turns.append(np.degrees(se3.rotation_angle(step[:3, :3] @ true[:3, :3].T)))
        lengths.append(np.linalg.norm(step[:3, 3]) / np.linalg.norm(true[:3, 3]))
    return np.array(turns), np.array(lengths)


@pytest.mark.parametrize('begin', [0, pytest.param(STEPS - 5, marks=pytest.mark.slow)])
def test_a_chain_whose_unit_shrinks_by_nine_powers_of_ten_holds(cone, begin):
    views, pairs, truth = cone
    chain = Chain(range(STEPS), pairs, views, CONFIG)
    start = {number: se3.inverse(truth[number]) for number in range(begin, begin + 5)}
    start = seen_from(start, begin, step_length([start[number] for number in sorted(start)]))
    grown = chain.grown(start)
    state = adjusted(pairs, grown, views, CONFIG)
    for poses in (grown, state.poses):
        assert sorted(poses) == list(range(STEPS))
        turns, lengths = steps_of(poses, truth)
        assert turns.max() < 0.5
        # The drift of the unit is in the ratio of the first to the last; from step to step it is small.
        assert np.abs(np.diff(np.log(lengths))).max() < 0.1
    assert len(state.structure.tracks.point) > 0.9 * len(build_tracks(views, pairs).point)
