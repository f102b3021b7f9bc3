# SPDX-License-Identifier: Apache-2.0
"""Odometry holds the unit of a map, against exact truth."""

import math
from itertools import pairwise

import numpy as np
import pytest
from drive import CONFIG, Route, World, along
from synthetic_world import CAMERA, index_of, stamp

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.mapping.closing import spread_error, spread_error_in_steps
from dark3r_ros.mapping.evidence import Evidence
from dark3r_ros.mapping.holding import ScaleHold, smoothed
from dark3r_ros.mapping.motion import odometry_track
from dark3r_ros.mapping.similarity import Similarity
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.simulation.odometry import WheelOdometry

STEP = 0.25  # metres between keyframes
CREEP = 0.003  # by which a visual step is shorter than the one before it: about 1 % a second
COUNT = 150
UP = se3.BODY_FROM_OPTICAL
SLIPS = ((40, 43, 0.5), (80, 84, 0.8), (110, 112, 0.2))  # from step to step, share by which the wheels turn too far


def bend(count=COUNT, turn=0.01):
    """True poses of a camera that looks ahead, along a bend in a plane."""
    poses = [np.eye(4)]
    for _ in range(count - 1):
        poses.append(poses[-1] @ se3.make(se3.exp_so3([0.0, turn, 0.0]), [0.0, 0.0, STEP]))
    return poses


def wheels(poses, slips=(), noise=0.0, known=range(10**6)):
    """Odometry of true poses with slips, told of some of them."""
    track, odom, rng = odometry_track(), np.eye(4), np.random.default_rng(3)
    for number, pose in enumerate(poses):
        if number:
            step = se3.inverse(poses[number - 1]) @ pose
            share = sum(share for first, last, share in slips if first <= number < last)
            step[:3, 3] *= 1.0 + share + rng.normal(0.0, noise)
            odom = odom @ step
        if number in known:
            track.add(stamp(number), UP @ odom @ se3.inverse(UP))
    return track


def crept(poses, track, window=12, creep=CREEP, hold=True):
    """A map in which each visual step is a little shorter than the one before, held by odometry as it grows."""
    submap, holder = Submap.empty(0, CONFIG, iter(range(10**6))), ScaleHold(track)
    keyframes = submap.map.keyframes
    for number, pose in enumerate(poses):
        if number:
            step = se3.inverse(poses[number - 1]) @ pose
            step[:3, 3] *= (1.0 if number == 1 else units(submap)[-1]) * (1.0 - creep)
            pose = keyframes[-1].world_from_camera @ step
        keyframes.append(Keyframe(number, stamp(number), 'camera', CAMERA, se3.inverse(pose), 0.0, None))
        if hold:
            holder.straighten(submap, keyframes[-window:])
    return submap


def units(submap):
    """Length (N - 1,) of every step in map units per true metre."""
    centres = np.stack([keyframe.centre for keyframe in submap.map.keyframes])
    return np.linalg.norm(np.diff(centres, axis=0), axis=1) / STEP


def error(submap, poses):
    """Root mean square error of the centres after Sim(3), as a share of the way."""
    estimate = np.stack([keyframe.centre for keyframe in submap.map.keyframes])
    truth = np.stack([pose[:3, 3] for pose in poses])
    scale, rotation, translation = umeyama(estimate, truth)
    off = scale * estimate @ rotation.T + translation - truth
    return float(np.sqrt((off**2).sum(axis=1).mean())) / (STEP * (len(poses) - 1))


def test_without_odometry_nothing_moves():
    alone, empty = crept(bend(40), odometry_track(), hold=False), crept(bend(40), odometry_track())
    for one, other in zip(alone.map.keyframes, empty.map.keyframes, strict=True):
        assert (one.camera_from_world == other.camera_from_world).all()
    assert math.isnan(empty.metres)
    assert ScaleHold(odometry_track()).nodes(empty) is None


@pytest.mark.parametrize('noise', [0.0, 0.02])
def test_the_unit_is_held_while_the_map_grows_though_wheels_slip(noise):
    poses = bend()
    alone, held = crept(poses, odometry_track()), crept(poses, wheels(poses, SLIPS, noise))
    assert error(alone, poses) > 0.015 and units(alone)[-1] < 0.65
    assert error(held, poses) < 0.002
    assert abs(math.log(np.median(units(held)[-20:]) * held.metres)) < 0.01
    # No step is as long as the wheels have it that slipped.
    assert np.abs(np.log(units(held)[20:] * held.metres)).max() < 0.03 + 4.0 * noise


def test_wheels_that_spin_for_long_do_not_stretch_the_map():
    poses = bend()
    held = crept(poses, wheels(poses, [(60, 85, 0.4)]))
    assert np.abs(np.log(units(held)[20:] * held.metres)).max() < 0.1  # 25 steps creep by 8 % while nothing holds them
    assert abs(math.log(units(held)[-1] * held.metres)) < 0.01


CAMERA_HEIGHT = 0.8


def above_ground(poses, hidden=range(0), window=12, creep=CREEP):
    """As `crept`, without odometry: each keyframe sees the floor below it, but for some, and is held by its height."""
    submap, holder = Submap.empty(0, CONFIG, iter(range(10**6))), ScaleHold(odometry_track(), CAMERA_HEIGHT)
    keyframes, rng = submap.map.keyframes, np.random.default_rng(7)
    for number, pose in enumerate(poses):
        unit = 1.0
        if number:
            unit = (1.0 if number == 1 else units(submap)[-1]) * (1.0 - creep)
            step = se3.inverse(poses[number - 1]) @ pose
            step[:3, 3] *= unit
            pose = keyframes[-1].world_from_camera @ step
        keyframe = Keyframe(number, stamp(number), 'camera', CAMERA, se3.inverse(pose), 0.0, None)
        count = 0 if number in hidden else 80
        floor = np.column_stack(
            [rng.uniform(-1.4, 1.4, count), np.full(count, CAMERA_HEIGHT), rng.uniform(1.5, 6.0, count)]
        )
        walls = np.column_stack([rng.choice([-1.5, 1.5], 60), rng.uniform(-1.5, 0.0, 60), rng.uniform(1.0, 6.0, 60)])
        points = np.concatenate([floor, walls]) * (1.0 + 0.03 * rng.normal(size=(count + 60, 1)))
        rows = keyframe.table.lookup(rng.uniform(0.0, 100.0, (count + 60, 2)), np.arange(count + 60))
        world = se3.transform_points(pose, unit * points)
        keyframe.table.landmark[rows] = submap.map.landmarks.add(world, np.zeros((len(world), 3), np.uint8))
        keyframes.append(keyframe)
        holder.straighten(submap, keyframes[-window:])
        holder.see_ground(submap)
    return submap


def test_the_height_of_the_camera_holds_the_unit_where_there_is_no_odometry():
    poses = bend()
    alone, held = crept(poses, odometry_track()), above_ground(poses)
    assert error(alone, poses) > 0.015
    assert error(held, poses) < 0.004
    assert np.abs(np.log(units(held)[20:] * held.metres)).max() < 0.06
    hidden = above_ground(poses, hidden=range(60, 80))
    assert abs(math.log(units(hidden)[-1] * hidden.metres)) < 0.06
    assert all(keyframe.way is None for keyframe in hidden.map.keyframes[68:80])
    nowhere = above_ground(bend(30), hidden=range(30))
    assert math.isnan(nowhere.metres)


def test_odometry_is_asked_before_the_height():
    poses = bend(60)
    submap = crept(poses, wheels(poses))
    for before, after in pairwise(submap.map.keyframes):
        after.way = before.keyframe_id, 2.0 * STEP
    steps, _ = ScaleHold(odometry_track(), CAMERA_HEIGHT)._compare(submap.map.keyframes)
    assert np.abs(np.exp(steps) * units(submap) - 1.0).max() < 1e-6


def leapt(poses, track, at, factor, window=12):
    """A map held by odometry whose unit changes by a factor at one keyframe; leaps are put right, and counted."""
    submap, holder = Submap.empty(0, CONFIG, iter(range(10**6))), ScaleHold(track)
    keyframes, leaps = submap.map.keyframes, 0
    for number, pose in enumerate(poses):
        if number:
            step = se3.inverse(poses[number - 1]) @ pose
            unit = units(submap)[-1] if number > 1 else 1.0
            step[:3, 3] *= unit * (factor if number == at else 1.0)
            pose = keyframes[-1].world_from_camera @ step
        keyframes.append(Keyframe(number, stamp(number), 'camera', CAMERA, se3.inverse(pose), 0.0, None))
        # A point one true metre ahead of each keyframe, which it alone sees.
        ahead = submap.map.landmarks.add(
            se3.transform_points(pose, np.array([[0.0, 0.0, units(submap)[-1] if number else 1.0]])),
            np.zeros((1, 3), np.uint8),
        )
        row = keyframes[-1].table.lookup(np.array([[CAMERA.cx, CAMERA.cy]]), None)
        keyframes[-1].table.landmark[row] = ahead
        holder.straighten(submap, keyframes[-window:])
        nodes = holder.leap(submap)
        if nodes is not None:
            leaps += 1
            submap.move(nodes)
    return submap, leaps


@pytest.mark.parametrize('factor', [0.45, 2.2])
def test_a_unit_that_leaps_is_put_right_with_all_that_was_seen_in_it(factor):
    poses = bend(80)
    submap, leaps = leapt(poses, wheels(poses), 50, factor)
    assert leaps == 1
    assert np.abs(np.log(units(submap)[15:] * submap.metres)).max() < 0.02
    assert error(submap, poses) < 0.002
    for keyframe in submap.map.keyframes[60:]:
        local = se3.transform_points(keyframe.camera_from_world, submap.map.landmarks.points[keyframe.table.landmark])
        assert abs(local[0, 2] * submap.metres - 1.0) < 0.05


def test_wheels_that_slip_are_no_leap():
    poses = bend()
    assert leapt(poses, wheels(poses, SLIPS), 0, 1.0)[1] == 0
    assert leapt(poses, wheels(poses, [(60, 85, 0.4)]), 0, 1.0)[1] == 0
    assert leapt(poses, wheels(poses, [(60, 67, 0.8)]), 0, 1.0)[1] == 0
    assert leapt(poses, odometry_track(), 50, 2.0)[1] == 0


def test_a_unit_that_creeps_is_held_from_where_it_is():
    poses = bend(60)
    submap = crept(poses, wheels(poses, noise=0.02), creep=0.03)  # three percent a keyframe
    assert math.isfinite(submap.metres)
    assert np.abs(np.log(units(submap)[30:] * submap.metres)).max() < 0.15
    assert units(crept(poses, odometry_track(), creep=0.03))[-1] < 0.2


def test_odometry_that_is_away_for_a_while_holds_the_map_again():
    poses = bend()
    held = crept(poses, wheels(poses, known=[*range(50), *range(90, COUNT)]))
    assert units(held)[75] * held.metres < 0.93
    assert abs(math.log(units(held)[-1] * held.metres)) < 0.01


def test_a_unit_that_most_steps_speak_against_is_given_up():
    poses = bend()
    held = crept(poses, wheels(poses, known=range(50, COUNT)))
    held.metres *= 1.5
    holder = ScaleHold(wheels(poses))
    assert holder.straighten(held, held.map.keyframes[-40:])
    assert abs(math.log(units(held)[-1] * held.metres)) < 0.02


def test_only_free_keyframes_move():
    poses = bend(60)
    submap = crept(poses, odometry_track())
    before = [keyframe.camera_from_world for keyframe in submap.map.keyframes]
    assert ScaleHold(wheels(poses)).straighten(submap, submap.map.keyframes[-12:])
    moved = [(one.camera_from_world != pose).any() for one, pose in zip(submap.map.keyframes, before, strict=True)]
    assert moved == [False] * 48 + [True] * 12


def test_steps_that_wheels_and_vision_turn_otherwise_say_nothing():
    poses = bend(60)
    askew = [pose @ se3.make(se3.exp_so3([0.0, 0.2 * (number % 2), 0.0]), np.zeros(3))
             for number, pose in enumerate(poses)]  # fmt: skip
    assert not ScaleHold(wheels(askew)).straighten(crept(poses, odometry_track()), [])


def test_all_that_is_known_sets_a_finished_map_right():
    poses = bend()
    submap = crept(poses, odometry_track())
    nodes = ScaleHold(wheels(poses, SLIPS)).nodes(submap)
    before = units(submap)
    submap.move(nodes)
    # The whole map says now what a metre is, so that only what creeps is put right.
    assert before[0] / before[-1] > 1.5 and units(submap).max() / units(submap).min() < 1.025
    assert error(submap, poses) < 0.002
    around = np.array([node.scale for node in nodes])
    np.testing.assert_allclose(around[1:-1] * before[1:], units(submap)[1:], rtol=0.01)


def test_a_loop_stays_closed_where_odometry_would_open_it():
    circle = bend(125, 2.0 * np.pi / 124)
    submap = crept(circle, odometry_track(), creep=0.0)
    submap.ties.append((0, 124))
    # Wheels that turn ever farther would make a spiral of the circle.
    worn = wheels(circle, [(number, 125, 0.002) for number in range(1, 125)])
    centres = [node.translation for node in ScaleHold(worn).nodes(submap)]
    assert np.linalg.norm(centres[-1] - centres[0]) < 0.1
    submap.ties.clear()
    centres = [node.translation for node in ScaleHold(worn).nodes(submap)]
    assert np.linalg.norm(centres[-1] - centres[0]) > 0.5


@pytest.mark.parametrize('held', [False, True])
def test_a_loop_of_a_map_that_is_held_closes_by_turns_and_not_by_its_unit(held):
    circle = bend(125, 2.0 * np.pi / 124)
    # Vision turns too far in the first quarter and too little in the second, so that the circle stays open.
    wrong = [np.eye(4)]
    for number, (before, after) in enumerate(pairwise(circle)):
        turn = se3.exp_so3([0.0, 0.005 * ((number < 31) - (31 <= number < 62)), 0.0])
        wrong.append(wrong[-1] @ se3.inverse(before) @ after @ se3.make(turn, np.zeros(3)))
    submap = crept(wrong, odometry_track(), creep=0.0)
    submap.metres = 1.0 if held else math.nan
    keyframes = submap.map.keyframes
    for keyframe in keyframes:
        keyframe.odometry = (np.eye(4), 0)
    for before, after in pairwise(keyframes):
        after.parents = (before.keyframe_id,)
    gap = np.linalg.norm(keyframes[-1].centre - keyframes[0].centre)
    place = se3.inverse(circle[0]) @ circle[-1]
    seen = Evidence(keyframes[-1], keyframes[0], (keyframes[0],), submap, se3.inverse(place), 1.0, 100, 1.0, ())
    grown = np.array(spread_error(submap, [seen]))
    assert np.linalg.norm(keyframes[-1].centre - keyframes[0].centre) < 0.3 * gap
    if held:
        assert np.abs(np.log(grown)).max() < 0.006 and units(submap).max() / units(submap).min() < 1.02
        assert error(submap, circle) < 0.0035
    else:
        assert np.abs(np.log(grown)).max() > 0.05 and error(submap, circle) > 0.0045


def test_a_map_that_takes_another_one_has_its_unit_until_it_has_one_of_its_own():
    poses = bend(40)
    other, joined = crept(poses, wheels(poses)), crept(poses[:5], odometry_track())
    metres = other.metres
    # Two units of the map that takes it make one of the other.
    joined.take(other, Similarity(2.0, np.eye(3), np.zeros(3)), other)
    assert joined.metres == pytest.approx(metres / 2.0)
    again = crept(poses, wheels(poses))
    joined.take(again, Similarity(3.0, np.eye(3), np.zeros(3)), again)
    assert joined.metres == pytest.approx(metres / 2.0)


def test_one_keyframe_and_odometry_that_is_not_a_number_move_nothing():
    one = crept(bend(1), wheels(bend(1)))
    one.metres = 1.0
    assert not ScaleHold(wheels(bend(1))).straighten(one, one.map.keyframes)
    track = odometry_track()
    for number in range(60):
        track.add(stamp(number), np.full((4, 4), np.nan))
    assert len(track) == 0
    assert not ScaleHold(track).straighten(crept(bend(60), odometry_track()), [])


def test_keyframes_that_places_further_back_hold_know_their_odometry_all_the_same():
    poses = bend(100)
    submap = crept(poses, odometry_track(), hold=False)
    ScaleHold(wheels(poses)).remember(submap)
    known = [keyframe.odometry is not None for keyframe in submap.map.keyframes]
    assert all(known[-60:]) and not any(known[:-60])


def test_smoothing_follows_a_slow_change_and_leaves_out_single_steps():
    true = 0.002 * np.arange(60)
    said = true.copy()
    said[20:23] += 0.5
    sigma = np.full(60, 0.03)
    sigma[40:44] = np.inf
    assert np.abs(smoothed(said, sigma, np.zeros(60), 0.03) - true).max() < 0.02
    assert not smoothed(said, np.full(60, np.inf), np.zeros(60), 0.03).any()


def test_a_drive_with_odometry_is_held_and_ends_as_exactly_as_without():
    world = World()
    route = Route(world, along(world, 0.12 * np.arange(150)))
    alone = Route(world, route.poses).run()
    odometry = WheelOdometry(np.random.default_rng(0), scale_error=0.02, noise=0.003, slip_rate=0.1)
    route.pipeline.mount(UP)
    for index, pose in enumerate(route.poses):
        route.pipeline.add_odometry(stamp(index), odometry.read(stamp(index), UP @ pose).odom_from_body)
        route.run(index, index + 1)
    submap = route.pipeline._atlas.submaps[0]
    assert math.isfinite(submap.metres)
    assert route.error()[1] == 150
    assert route.error()[0] < alone.error()[0] + 0.01  # metres of 18
    route.pipeline.flush()
    assert route.error()[0] < alone.error()[0] + 0.01
    # Frames between keyframes went with them.
    trajectory = route.pipeline.reconstruction().trajectory()
    truth = np.stack([route.poses[index_of(int(ns))][:3, 3] for ns in trajectory.stamps_ns])
    ways = np.linalg.norm(np.diff(trajectory.world_from_camera[:, :3, 3], axis=0), axis=1)
    ratio = ways / np.linalg.norm(np.diff(truth, axis=0), axis=1)
    assert ratio.std() / ratio.mean() < 0.08


def test_a_loop_closes_by_turns_though_vision_has_turned_alike_all_the_way():
    """As measured in the dark: 0.7 mrad a step to the same side, 16 degrees in a lap, beside 3 mrad of noise."""
    circle, rng = bend(430, 2.0 * np.pi / 400), np.random.default_rng(0)
    wrong = [np.eye(4)]
    for before, after in pairwise(circle):
        turn = np.array([0.0007, -0.0005, 0.0004]) + rng.normal(0.0, 0.003, 3)
        wrong.append(wrong[-1] @ se3.inverse(before) @ after @ se3.make(se3.exp_so3(turn), np.zeros(3)))
    submap = linked(crept(wrong, odometry_track(), hold=False, creep=0.0))
    before = error(submap, circle)
    # How large the place looks is off by as much as was seen.
    assert spread_error(submap, recognised(submap, circle, [(425, 25), (424, 24), (423, 23)], scale=1.12)) is not None
    assert error(submap, circle) < 0.2 * before
    assert units(submap).max() / units(submap).min() < 1.02


def test_a_loop_closed_in_pieces_moves_nothing_before_the_last_and_ends_the_same():
    circle, wrong = bend(130, 2.0 * np.pi / 124), [np.eye(4)]
    for before, after in pairwise(circle):
        turn = se3.exp_so3([0.0, 0.001, 0.0])
        wrong.append(wrong[-1] @ se3.inverse(before) @ after @ se3.make(turn, np.zeros(3)))
    at_once, in_pieces = (linked(crept(wrong, odometry_track(), hold=False, creep=0.0)) for _ in range(2))
    seen = [recognised(submap, circle, [(127, 3), (126, 2), (125, 1)]) for submap in (at_once, in_pieces)]
    start = in_pieces.map.keyframes[60].camera_from_world.copy()
    scales = spread_error(at_once, seen[0])
    steps, pieces = spread_error_in_steps(in_pieces, seen[1]), 0
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
            pieces += 1
            assert (in_pieces.map.keyframes[60].camera_from_world == start).all() and not in_pieces.ties
    assert pieces > 1
    assert end.value.value == scales
    assert not (in_pieces.map.keyframes[60].camera_from_world == start).all()
    for one, other in zip(at_once.map.keyframes, in_pieces.map.keyframes, strict=True):
        np.testing.assert_array_equal(one.camera_from_world, other.camera_from_world)


def test_a_place_is_recognised_again_soon_after_a_loop_though_vision_has_turned_on():
    circle, wrong = bend(460, 2.0 * np.pi / 400), [np.eye(4)]
    for number, (before, after) in enumerate(pairwise(circle)):
        turn = np.array([0.0, 0.005, 0.0017]) if number > 425 else np.zeros(3)  # 9 degrees in 30 steps
        wrong.append(wrong[-1] @ se3.inverse(before) @ after @ se3.make(se3.exp_so3(turn), np.zeros(3)))
    submap = linked(crept(wrong, odometry_track(), hold=False, creep=0.0))
    submap.ties += [(number - 400, number) for number in range(401, 425)]
    before = np.linalg.norm(submap.map.keyframes[456].centre - circle[456][:3, 3])
    assert spread_error(submap, recognised(submap, circle, [(456, 56), (455, 55), (454, 54)])) is not None
    assert np.linalg.norm(submap.map.keyframes[456].centre - circle[456][:3, 3]) < 0.4 * before


def test_the_unit_gives_way_where_no_odometry_held_it():
    circle = bend(125, 2.0 * np.pi / 124)
    submap = linked(crept(circle, odometry_track(), hold=False, creep=0.002))
    for keyframe in submap.map.keyframes[20:]:
        keyframe.odometry = None  # it fell silent
    before = error(submap, circle)
    assert spread_error(submap, recognised(submap, circle, [(124, 0), (123, 1), (122, 2)])) is not None
    assert error(submap, circle) < 0.5 * before
    assert units(submap)[:19].max() / units(submap)[:19].min() < 1.05 < units(submap).max() / units(submap).min()


@pytest.mark.parametrize('way', ['ahead', 'back'])
def test_a_bay_that_looks_like_another_one_is_refused_by_a_map_that_is_held(way):
    straight, bay = bend(160, 0.0), 3.0
    poses, pairs = (straight, [(155, 145), (154, 144), (153, 143)])
    if way == 'back':
        poses, pairs = ([*straight, *straight[-2::-1]], [(300, 18), (299, 19), (298, 20)])
    submap = linked(crept(poses, odometry_track(), hold=False, creep=0.0))
    before = [keyframe.camera_from_world for keyframe in submap.map.keyframes]
    assert spread_error(submap, recognised(submap, poses, pairs, ahead=bay)) is None
    for keyframe, pose in zip(submap.map.keyframes, before, strict=True):
        assert (keyframe.camera_from_world == pose).all()


def linked(submap):
    """The map, held, with each keyframe tied to the three before it."""
    submap.metres = 1.0
    for number, keyframe in enumerate(submap.map.keyframes):
        keyframe.parents = tuple(range(max(number - 3, 0), number))
        keyframe.odometry = (np.eye(4), 0)
    return submap


def recognised(submap, poses, pairs, ahead=0.0, scale=1.0):
    """Keyframes that see places where these truly lie, or by so many metres off."""
    keyframes, found = submap.map.keyframes, []
    for query, place in pairs:
        off = se3.make(np.eye(3), [0.0, 0.0, ahead])
        seen = off @ se3.inverse(poses[query]) @ poses[place] @ keyframes[place].camera_from_world
        found.append(
            Evidence(keyframes[query], keyframes[place], (keyframes[place],), submap, seen, scale, 100, 1.0, ())
        )
    return found
