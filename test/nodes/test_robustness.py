# SPDX-License-Identifier: Apache-2.0
"""What a node that runs for days meets: programs that fail, transitions in any order, frames that do not end."""

import gc
import random
import threading
import time

import pytest
from dark3r_ros.msg import MappingStatus
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Odometry
from rclpy.lifecycle import TransitionCallbackReturn

from dark3r_ros.nodes.inputs import Inputs
from dark3r_ros.nodes.outputs import Outputs
from dark3r_ros.nodes.results import Results
from dark3r_ros.nodes.worker import PipelineWorker
from dark3r_ros.storage.result import read_result

T0 = 1795188284_000000000
STEP = 100_000_000


def drive(graph, camera, node, numbers) -> None:
    graph.until(camera.matched)
    camera.infos.publish(camera.info())
    graph.until(lambda: len(node.cameras) > 0)
    for number in numbers:
        camera.images.publish(camera.image(T0 + number * STEP))
        graph.until(lambda n=number: node.health.stamp_ns == T0 + n * STEP)


def test_a_program_that_fails_on_every_frame_is_an_error_and_one_success_ends_it(graph, make_node, camera, pipeline):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    diagnostics = graph.listen(DiagnosticArray, '/diagnostics')
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    node = make_node(error_after=4)
    pipeline.script = {number: RuntimeError('broken') for number in range(2, 8)}
    drive(graph, camera, node, range(8))
    graph.until(lambda: statuses[-1].frames_failed == 6)
    states = {status.frames_failed: status.state for status in statuses}
    assert (states[0], states[1], states[3]) == (MappingStatus.STATE_TRACKING,) * 3
    assert (states[4], states[6]) == (MappingStatus.STATE_ERROR,) * 2
    assert '6 frames in a row failed, the map is kept' in statuses[-1].message
    assert 'RuntimeError: broken' in statuses[-1].message
    graph.until(lambda: diagnostics and diagnostics[-1].status[0].level == DiagnosticStatus.ERROR)
    assert sum('broken' in line for line in node.lines) == 1  # said, but not once a frame
    drive(graph, camera, node, range(8, 10))
    graph.until(lambda: statuses[-1].state == MappingStatus.STATE_TRACKING)
    graph.until(lambda: len(odometry) == 4)
    assert pipeline.posed == 4 and pipeline.resets == 1


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_worker_that_died_is_back_with_the_map(graph, make_node, camera, pipeline):
    node = make_node()
    pipeline.script = {2: SystemExit('from below')}
    drive(graph, camera, node, range(2))
    camera.images.publish(camera.image(T0 + 2 * STEP))
    graph.until(lambda: any('ended by itself' in line for line in node.lines))
    drive(graph, camera, node, range(3, 5))
    assert pipeline.posed == 4 and pipeline.resets == 1 and node.worker.failed == 1


def test_advice_reaches_status_and_diagnostics(graph, make_node, camera):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    diagnostics = graph.listen(DiagnosticArray, '/diagnostics')
    node = make_node(advice__hold=2, advice__period=0.0, advice__low_snr=20.0)
    drive(graph, camera, node, range(4))
    graph.until(lambda: statuses[-1].advice)
    assert statuses[-1].advice[0].startswith('SNR 8 dB: lengthen the exposure')
    assert not statuses[0].advice
    graph.until(lambda: diagnostics and 'lengthen the exposure' in diagnostics[-1].status[0].message)
    assert diagnostics[-1].status[0].level == DiagnosticStatus.WARN


def test_shutdown_waits_for_a_slow_frame_rather_than_losing_the_map(graph, make_node, camera, pipeline, tmp_path):
    node = make_node(save_on_shutdown=str(tmp_path / 'end'))
    drive(graph, camera, node, range(3))
    pipeline.gate = threading.Event()
    camera.images.publish(camera.image(T0 + 3 * STEP))
    graph.until(lambda: len(pipeline.frames) == 4)
    threading.Timer(2.0, pipeline.gate.set).start()  # longer than a node without a map to save would wait
    assert node.close() == 0
    assert len(read_result(tmp_path / 'end').reconstruction.frames) == 4
    assert (tmp_path / 'end' / 'state' / 'fake.txt').exists()


def held(node) -> dict[str, int]:
    """What a node holds that could leak."""
    gc.collect()
    kinds = (Inputs, Outputs, Results, PipelineWorker)
    objects = gc.get_objects()
    return {
        'threads': threading.active_count(),
        'publishers': len(list(node.publishers)),
        'subscriptions': len(list(node.subscriptions)),
        'timers': len(list(node.timers)),
        'guards': len(list(node.guards)),
        'services': len(list(node.services)),
        **{kind.__name__: sum(type(item) is kind for item in objects) for kind in kinds},
    }


def test_a_hundred_transitions_in_any_order_leak_nothing(graph, make_node, camera, pipeline):
    node = make_node(start=False)
    node.autostart()
    drive(graph, camera, node, range(2))
    node.trigger_deactivate()
    node.trigger_cleanup()
    graph.spin(0.1)  # the executor lets go of what it called last
    before = held(node)
    choose = random.Random(4)
    ways = {
        'unconfigured': ['trigger_configure'],
        'inactive': ['trigger_activate', 'trigger_cleanup'],
        'active': ['trigger_deactivate'],
    }
    number = 10
    for _ in range(100):
        state = node._state_machine.current_state[1]
        assert getattr(node, choose.choice(ways[state]))() == TransitionCallbackReturn.SUCCESS
        state = node._state_machine.current_state[1]
        if state == 'active' and choose.random() < 0.3:
            drive(graph, camera, node, [number])
            number += 1
    while (state := node._state_machine.current_state[1]) != 'unconfigured':
        getattr(node, ways[state][-1])()
    graph.spin(0.1)
    assert held(node) == before
    assert number > 12


def test_a_transition_that_does_not_fit_is_refused_and_changes_nothing(graph, make_node, camera):
    from lifecycle_msgs.srv import ChangeState

    node = make_node()
    for label in ('configure', 'activate', 'cleanup', 'nonsense'):
        request = ChangeState.Request()
        request.transition.label = label
        assert not graph.call(ChangeState, '/dark3r_mapping/change_state', request).success
    drive(graph, camera, node, range(2))
    assert node.health.pipeline.posed == 2


def test_stopping_is_quick_without_work(graph, make_node, camera):
    node = make_node()
    drive(graph, camera, node, range(2))
    started = time.monotonic()
    node.trigger_deactivate()
    assert time.monotonic() - started < 2.0


def test_a_shown_pipeline_is_the_same_pipeline(pipeline):
    from types import SimpleNamespace

    from dark3r_ros.nodes.build import Shown
    from dark3r_ros.nodes.worker import Staged
    from dark3r_ros.types import Frame

    seen = []
    names = ('reconstruction', 'reset', 'status', 'flush', 'save_state', 'load_state')
    parts = SimpleNamespace(**{name: getattr(pipeline, name) for name in names})
    parts.prepare = lambda frame: SimpleNamespace(frame=frame)
    parts.pose = lambda prepared: pipeline.push(prepared.frame)
    parts.work = lambda: ['a keyframe']

    class Viewer:
        def show(self, frame, events, status):
            seen.append((frame, len(events), status.posed))

    shown = Shown(parts, Viewer())
    frame = Frame(5, pipeline.cloud(0).colors[..., 0].astype('uint16'), 'rggb', (0.0,) * 3, 1.0)
    events = shown.push(frame)
    assert isinstance(shown, Staged)
    assert len(events) == 4 and shown.flush() == []
    assert seen == [(frame, 3, 1), (None, 1, 1)]  # what was done between the frames is shown with the next
    assert shown.status().posed == 1 and shown.reconstruction().frames


def test_a_viewer_without_its_package_is_one_line(graph, make_node, monkeypatch):
    import sys

    from dark3r_ros.errors import ConfigError
    from dark3r_ros.nodes.build import build_pipeline

    monkeypatch.setitem(sys.modules, 'rerun', None)
    node = make_node(start=False, viewer='window', predictor='classical')
    node._make_pipeline = build_pipeline
    with pytest.raises(ConfigError, match='could not be configured'):
        node.autostart()
