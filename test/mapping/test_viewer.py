# SPDX-License-Identifier: Apache-2.0
"""What is shown, by a stand-in for rerun that writes down what it is given."""

import sys
import types

import numpy as np
import pytest

from dark3r_ros.errors import ConfigError, DependencyError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping import events
from dark3r_ros.mapping.events import PipelineStatus
from dark3r_ros.mapping.viewer import LiveViewer
from dark3r_ros.types import Frame, MappingState, PointCloud

STATUS = PipelineStatus(MappingState.TRACKING, 'tracking', -3.5, 16, 40, 50, 1, 10, 1, 1, 0)
CLOUD = PointCloud(np.ones((4, 3), np.float32), np.zeros((4, 3), np.uint8), np.ones(4, np.float32))


class Recorder(types.ModuleType):
    """Module `rerun` as far as the viewer uses it."""

    def __init__(self) -> None:
        super().__init__('rerun')
        self.shown: list[tuple[str, object]] = []
        self.times: list[object] = []
        self.target = ''
        self.ViewCoordinates = types.SimpleNamespace(RIGHT_HAND_Y_DOWN='axes')
        for name in ('Points3D', 'LineStrips3D', 'Transform3D', 'Pinhole', 'Scalars', 'TextLog', 'Clear', 'Image'):
            setattr(self, name, self._kind(name))

    @staticmethod
    def _kind(name):
        def make(*arguments, **named):
            made = types.SimpleNamespace(kind=name, arguments=arguments, **named)
            made.compress = lambda **_: made
            return made

        return make

    def init(self, _):
        self.shown.clear()

    def spawn(self):
        self.target = 'window'

    def save(self, path):
        self.target = path

    def set_time(self, _, timestamp):
        self.times.append(timestamp)

    def log(self, path, item, **_):
        self.shown.append((path, item))

    def kinds(self, path) -> list[str]:
        return [item.kind for where, item in self.shown if where == path]


@pytest.fixture
def rerun(monkeypatch) -> Recorder:
    made = Recorder()
    monkeypatch.setitem(sys.modules, 'rerun', made)
    return made


def frame(stamp=5) -> Frame:
    mosaic = np.random.default_rng(0).integers(100, 900, (48, 64)).astype(np.uint16)
    return Frame(stamp, mosaic, 'rggb', (64.0,) * 3, 1023.0, Camera(64, 48, 50.0, 50.0, 32.0, 24.0))


def posed(submap=0, late=False):
    return events.FramePosed(5, 'cam', np.eye(4), np.eye(6), 40, 50, -3.5, True, late, submap)


def test_camera_numbers_path_and_points_are_shown_at_their_time(rerun):
    viewer = LiveViewer('out.rrd', lambda _: None)
    viewer.show(frame(), [posed(), events.KeyframeAdded(3, 5, 'cam', np.eye(4), CLOUD, -3.5, 4)], STATUS)
    assert rerun.target == 'out.rrd' and rerun.times == [np.datetime64(5, 'ns')]
    assert rerun.kinds('world/camera') == ['Image', 'Pinhole', 'Transform3D']
    values = {path: item.arguments[0] for path, item in rerun.shown if path.startswith('numbers')}
    assert values == {'numbers/snr_db': -3.5, 'numbers/matches': 50.0, 'numbers/inliers': 40.0}
    assert rerun.kinds('world/points/3') == ['Points3D'] and rerun.kinds('world/path') == ['LineStrips3D']


def test_other_submaps_are_not_mixed_in_and_a_discarded_map_goes(rerun):
    viewer = LiveViewer('window', lambda _: None)
    assert rerun.target == 'window'
    viewer.show(frame(), [posed(submap=1), posed(late=True)], STATUS)
    assert not rerun.kinds('world/path')
    viewer.show(None, [posed(), events.MapDiscarded(6, 'weak')], STATUS)
    assert rerun.shown[-1][1].kind == 'Clear'


def test_a_viewer_that_fails_is_switched_off_once(rerun):
    said = []
    viewer = LiveViewer('window', said.append)
    rerun.log = lambda *_, **__: 1 / 0
    for _ in range(3):
        viewer.show(frame(), [posed()], STATUS)
    assert len(said) == 1 and 'switched off: ZeroDivisionError' in said[0]


def test_a_wrong_target_and_a_missing_package_are_one_line(monkeypatch, rerun):
    with pytest.raises(ConfigError, match=r"'window' or a file that ends in \.rrd, not 'screen'"):
        LiveViewer('screen', print)
    monkeypatch.setitem(sys.modules, 'rerun', None)
    with pytest.raises(DependencyError, match=r'pip install "dark3r_ros\[viewer\]"'):
        LiveViewer('window', print)
