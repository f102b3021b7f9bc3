# SPDX-License-Identifier: Apache-2.0
"""A live map saved, loaded, localised in and continued."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from drive import CONFIG, Route, World, along, descriptors
from synthetic_world import CAMERA, Seen, stamp

from dark3r_ros.errors import DataError, OutputError, ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.mapping import packing, places
from dark3r_ros.mapping.intake import camera_notes
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.mapping.scratch import ScratchFile
from dark3r_ros.mapping.state_file import FORMAT, STATE_FILE
from dark3r_ros.matching.mini import MiniFeatures
from dark3r_ros.types import MappingState

OUT = np.arange(0.0, 7.0, 0.12)
ON = np.arange(5.0, 12.0, 0.12)
OFTEN = replace(CONFIG, keyframe_flow=0.02, keyframe_overlap=0.97)  # a keyframe every few frames


@pytest.fixture(scope='module')
def session(tmp_path_factory):
    """A saved map, the route that made it, and the patches under which it was made."""
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, 'local_descriptors', descriptors(world))
        patch.setitem(packing.FEATURE_TYPES, 'Seen', Seen)
        route = Route(world, along(world, OUT)).run()
        folder = tmp_path_factory.mktemp('state') / 'map'
        route.pipeline.save_state(folder)
        yield world, route, folder


def test_what_is_loaded_is_what_was_saved(session):
    _, route, folder = session
    fresh = MappingPipeline(CONFIG, route.predictor)
    (message,) = fresh.load_state(folder)
    assert 'keyframes loaded' in message
    a, b = route.pipeline.reconstruction(), fresh.reconstruction()
    np.testing.assert_array_equal(a.trajectory().world_from_camera, b.trajectory().world_from_camera)
    np.testing.assert_array_equal(a.observations.points, b.observations.points)
    np.testing.assert_array_equal(a.observations.pixels, b.observations.pixels)
    assert [frame.reason for frame in a.frames] == [frame.reason for frame in b.frames]
    assert fresh.status().state == MappingState.LOST
    assert fresh.status().keyframes == route.pipeline.status().keyframes


def test_a_later_session_is_found_in_the_map_and_goes_on_in_it(session):
    world, first, folder = session
    second = Route(world, along(world, ON), noise_px=0.4)
    second.pipeline.load_state(folder)
    before = second.pipeline.status().keyframes
    second.run()
    assert len({event.stamp_ns for event in second.posed()}) >= len(ON) - 3
    assert second.pipeline.status().keyframes > before
    assert second.pipeline.status().submaps == 1
    trajectory = second.pipeline.reconstruction().trajectory()
    # The stamps of both sessions are the same: the newer one is told.
    assert trajectory.stamps_ns.tolist() == [stamp(number) for number in range(len(ON))]
    old = first.pipeline.reconstruction().trajectory()
    place = {number: pose for number, pose in enumerate(old.world_from_camera)}
    travelled = np.linalg.norm(first.poses[40][:3, 3] - first.poses[0][:3, 3])
    unit = np.linalg.norm(place[40][:3, 3] - place[0][:3, 3]) / travelled
    # 5 metres along is the frame 41 or 42 of the first session.
    here = trajectory.world_from_camera[0][:3, 3]
    assert np.linalg.norm(here - place[41][:3, 3]) < 0.15 * unit
    assert second.error()[0] < 0.1


def test_saving_again_needs_leave_and_nothing_else_is_replaced(session, tmp_path):
    _, route, folder = session
    with pytest.raises(OutputError, match='--overwrite'):
        route.pipeline.save_state(folder)
    route.pipeline.save_state(folder, overwrite=True)
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(OutputError, match=r'map\.json'):
        route.pipeline.save_state(tmp_path, overwrite=True)


def test_a_result_folder_with_a_live_map_will_do(session, tmp_path):
    _, route, _ = session
    route.pipeline.save_state(tmp_path / 'result' / 'state')
    fresh = MappingPipeline(CONFIG, route.predictor)
    fresh.load_state(tmp_path / 'result')
    assert fresh.status().keyframes == route.pipeline.status().keyframes


@pytest.fixture
def copy(session, tmp_path):
    _, route, _ = session
    route.pipeline.save_state(tmp_path / 'copy')
    return tmp_path / 'copy'


def damage_text(folder):
    (folder / 'map.json').write_text('{')


def damage_format(folder):
    head = json.loads((folder / 'map.json').read_text())
    (folder / 'map.json').write_text(json.dumps({**head, 'format': 99}))


def damage_keys(folder):
    head = json.loads((folder / 'map.json').read_text())
    del head['cameras']
    (folder / 'map.json').write_text(json.dumps(head))


def damage_arrays(folder):
    path = folder / 'map.npz'
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_features(folder):
    path = folder / 'features.npz'
    data = bytearray(path.read_bytes())
    data[200:240] = b'x' * 40
    path.write_bytes(bytes(data))


def damage_missing(folder):
    (folder / 'features.npz').unlink()


@pytest.mark.parametrize(
    'damage', [damage_text, damage_format, damage_keys, damage_arrays, damage_features, damage_missing]
)
def test_a_damaged_map_is_one_line_and_the_present_map_stays(session, copy, damage):
    _, route, _ = session
    damage(copy)
    before = route.pipeline.status()
    with pytest.raises(DataError) as caught:
        route.pipeline.load_state(copy)
    assert '\n' not in str(caught.value)
    assert str(copy) in str(caught.value)
    assert route.pipeline.status() == before


def with_wheels(route):
    """Drive a route with exact odometry, which begins at nothing."""
    mounted = se3.BODY_FROM_OPTICAL
    start = se3.inverse(route.poses[0])
    for number, pose in enumerate(route.poses):
        route.pipeline.add_odometry(stamp(number), mounted @ start @ pose @ se3.inverse(mounted))
        route.run(number, number + 1)
    return route


@pytest.fixture
def held(session, tmp_path):
    """A saved map whose unit odometry holds, and the route that made it."""
    world, _, _ = session
    route = with_wheels(Route(world, along(world, OUT), config=OFTEN))
    route.pipeline.save_state(tmp_path / 'held')
    return world, route, tmp_path / 'held'


def test_the_unit_that_odometry_held_is_known_in_the_next_session_and_held_on(held):
    world, first, folder = held
    metres = first.pipeline._atlas.submaps[0].metres
    assert np.isfinite(metres)
    second = Route(world, along(world, ON), config=OFTEN, noise_px=0.4)
    second.pipeline.load_state(folder)
    submap = second.pipeline._atlas.submaps[0]
    assert submap.metres == metres
    for old, now in zip(first.pipeline._atlas.submaps[0].map.keyframes, submap.map.keyframes, strict=True):
        if old.odometry is not None:
            np.testing.assert_array_equal(old.odometry[0], now.odometry[0])
    before = {keyframe.odometry[1] for keyframe in submap.map.keyframes}
    known = len(submap.map.keyframes)
    with_wheels(second)  # the same stamps, from another place
    new = submap.map.keyframes[known:]
    assert len(new) > 10 and submap.metres == metres
    assert before.isdisjoint(keyframe.odometry[1] for keyframe in new if keyframe.odometry is not None)
    steps = np.linalg.norm(np.diff([keyframe.centre for keyframe in new], axis=0), axis=1)
    ways = np.diff([float(world.step * (keyframe.stamp_ns - stamp(0)) / (stamp(1) - stamp(0))) for keyframe in new])
    assert abs(np.median(np.log(ways / steps)) - np.log(metres)) < 0.05
    again = MappingPipeline(CONFIG, second.predictor)
    second.pipeline.save_state(folder.parent / 'again')
    again.load_state(folder.parent / 'again')
    assert again._atlas.submaps[0].metres == metres


def test_a_map_of_the_format_before_is_read_without_what_it_did_not_know(held):
    _, route, folder = held
    head = json.loads((folder / STATE_FILE).read_text())
    assert head['format'] == FORMAT == 2
    (folder / STATE_FILE).write_text(json.dumps({**head, 'format': 1}))
    with np.load(folder / 'map.npz') as file:
        arrays = {key: file[key] for key in file.files}
    new = ('metres', 'odometry', 'odometry_known', 'odometry_piece', 'averaged')
    np.savez(folder / 'map.npz', **{key: value for key, value in arrays.items() if key.split('/')[-1] not in new})
    fresh = MappingPipeline(CONFIG, route.predictor)
    fresh.load_state(folder)
    assert fresh.status().keyframes == route.pipeline.status().keyframes
    assert np.isnan(fresh._atlas.submaps[0].metres)


def test_another_predictor_is_refused_and_named(session, copy):
    _, route, _ = session
    fresh = MappingPipeline(CONFIG, route.predictor)
    route.predictor.fingerprint = 'other'
    try:
        with pytest.raises(DataError, match=r'world world.*other'):
            fresh.load_state(copy)
    finally:
        del route.predictor.fingerprint


def test_there_must_be_a_map_to_save_and_a_folder_to_load(session, tmp_path):
    _, route, _ = session
    with pytest.raises(ReconstructionError, match='no map yet'):
        MappingPipeline(CONFIG, route.predictor).save_state(tmp_path / 'empty')
    with pytest.raises(DataError, match='no saved map'):
        route.pipeline.load_state(tmp_path / 'nowhere')


def test_another_camera_is_told():
    wide = replace(CAMERA, fx=125.0, fy=125.0)
    assert not camera_notes(CAMERA, CAMERA)
    assert not camera_notes(CAMERA, CAMERA.binned(2))
    assert 'fx 250.0' in camera_notes(CAMERA, wide)[0]


def test_features_survive_packing_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    features = MiniFeatures(
        torch.rand(4, 3, 5, generator=generator).half(),
        torch.rand(60, 2, generator=generator).half(),
        torch.arange(15),
        torch.rand(15, generator=generator).half(),
        torch.zeros(0).half(),
        torch.zeros(0).half(),
        (6, 10),
        (20, 12),
    )
    back = packing.unpack(packing.pack(features))
    for name, value in vars(features).items():
        other = getattr(back, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    with pytest.raises(DataError):
        packing.unpack(packing.pack(features)[:-8])


def test_scratch_blocks_are_used_again_and_leave_nothing(tmp_path):
    scratch = ScratchFile(str(tmp_path))
    places_of = [scratch.write(bytes([number]) * 100) for number in range(4)]
    scratch.release(*places_of[1])
    assert scratch.write(b'z' * 90) == places_of[1]
    assert scratch.read(places_of[1][0], 90) == b'z' * 90
    assert scratch.read(places_of[2][0], 100) == bytes([2]) * 100
    assert scratch.size == 400
    assert not any(tmp_path.iterdir())  # it never had a name
    scratch.close()
