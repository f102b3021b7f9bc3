# SPDX-License-Identifier: Apache-2.0
"""The BuildNerf server with stand-ins for the commands that it runs."""

import json
import math
import sys

import cv2
import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from dark3r_ros.action import BuildNerf
from rclpy.action import ActionClient
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from dark3r_ros.errors import ConfigError
from dark3r_ros.nodes import qos
from dark3r_ros.nodes.nerf_job import Job, Stage, plan
from dark3r_ros.nodes.nerf_node import NerfNode

# Writes what `dark3r` would: a reconstruction, or progress, a preview and a field; waits for a signal where told to.
STAND_IN = """
import json, pathlib, signal, sys, time
kind, out = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index('-o') + 1])
out.mkdir(parents=True, exist_ok=True)
(out / 'arguments.json').write_text(json.dumps(sys.argv[1:]))
if kind == 'sfm':
    (out / 'report.json').write_text('{}')
    sys.exit(0)
if (out / 'fail').exists():
    print('dark3r: error: no raws', file=sys.stderr)
    sys.exit(2)
def stop(*_):
    (out / 'stopped').write_text('')
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
print(json.dumps({'preview': sys.argv[0] + '.png'}), flush=True)
for step in range(1, 5):
    facts = {'stage': 'training', 'step': step, 'steps': 4, 'loss': 1.0 / step, 'seconds_left': 4 - step}
    print(json.dumps(facts), flush=True)
    time.sleep(0.05)
while (out / 'wait').exists():
    time.sleep(0.05)
(out / 'nerf.json').write_text(json.dumps({'held_out': {'psnr_corrected_db': 31.5}}))
"""


@pytest.fixture
def stand_in(tmp_path):
    program = tmp_path / 'stand_in.py'
    program.write_text(STAND_IN)
    cv2.imwrite(f'{program}.png', np.full((4, 6, 3), (10, 20, 200), np.uint8))
    return (sys.executable, str(program))


@pytest.fixture
def bag(tmp_path):
    folder = tmp_path / 'bag'
    folder.mkdir()
    return folder


@pytest.fixture
def server(graph, stand_in):
    node = graph.add(NerfNode(parameter_overrides=[Parameter('feedback_period', value=0.1)]))
    node.command = stand_in
    return node


def send(graph, source, output, profile='preview', feedback=None):
    client = ActionClient(graph.helper, BuildNerf, 'dark3r_nerf/build_nerf')
    graph.until(client.server_is_ready)
    goal = BuildNerf.Goal(input_path=str(source), output_path=str(output), profile=profile)
    future = client.send_goal_async(goal, feedback_callback=feedback)
    graph.until(future.done)
    return client, future.result()


def test_plan_reconstructs_recordings_only(tmp_path, bag):
    stages = plan(bag, tmp_path / 'out', 'standard', predictor='mini', noise='starvis', device='cpu')
    assert [stage.name for stage in stages] == ['sfm', 'training']
    assert stages[0].arguments[:2] == ('sfm', str(bag)) and '--noise' in stages[0].arguments
    assert stages[1].arguments[stages[1].arguments.index('--input') + 1] == str(bag)
    (bag / 'report.json').write_text('{}')
    stages = plan(bag, tmp_path / 'out', 'standard', predictor='mini', noise='', device='cpu')
    assert [stage.name for stage in stages] == ['training'] and '--input' not in stages[0].arguments


def test_the_planned_commands_exist(tmp_path, bag):
    from dark3r_ros.cli.main import build_parser

    for stage in plan(bag, tmp_path / 'out', 'paper', predictor='mini', noise='starvis', device='cpu'):
        build_parser(stage.arguments[0]).parse_args(stage.arguments[1:])


def test_a_stage_that_was_done_is_not_done_again(tmp_path, stand_in):
    (tmp_path / 'done').write_text('')
    job = Job([Stage('sfm', ('sfm', '-o', str(tmp_path / 'sfm')), tmp_path / 'done')], tmp_path, stand_in)
    while job.poll() is None:
        pass
    assert job.result.success and not (tmp_path / 'sfm').exists()


def test_a_goal_gives_feedback_preview_and_result(graph, server, bag, tmp_path):
    feedback = []
    images = graph.listen(Image, 'dark3r_nerf/preview', qos.latched())
    _, goal = send(graph, bag, tmp_path / 'out', feedback=lambda message: feedback.append(message.feedback))
    future = goal.get_result_async()
    graph.until(future.done, 20.0)
    assert future.result().status == GoalStatus.STATUS_SUCCEEDED
    result = future.result().result
    assert result.success and result.psnr_db == 31.5 and result.field_path == str(tmp_path / 'out' / 'field')
    graph.until(lambda: images)
    assert (images[0].width, images[0].height, images[0].encoding) == (6, 4, 'bgr8')
    assert bytes(images[0].data[:3]) == bytes((10, 20, 200))
    graph.until(lambda: feedback and feedback[-1].progress == 1.0)
    assert feedback[-1].stage == 'training'
    arguments = json.loads((tmp_path / 'out' / 'field' / 'arguments.json').read_text())
    assert arguments[:3] == ['nerf', 'train', str(tmp_path / 'out' / 'sfm')]


def test_cancelling_stops_the_process(graph, server, bag, tmp_path):
    field = tmp_path / 'out' / 'field'
    field.mkdir(parents=True)
    (field / 'wait').write_text('')
    _, goal = send(graph, bag, tmp_path / 'out')
    graph.until(lambda: server.job is not None and server.job.state.progress == 1.0, 20.0)
    _, second = send(graph, bag, tmp_path / 'other')
    assert not second.accepted
    graph.until(goal.cancel_goal_async().done)
    future = goal.get_result_async()
    graph.until(future.done, 10.0)
    assert future.result().status == GoalStatus.STATUS_CANCELED
    assert (field / 'stopped').exists() and 'last checkpoint' in future.result().result.message


def test_a_build_outlives_its_client(graph, server, bag, tmp_path):
    field = tmp_path / 'out' / 'field'
    field.mkdir(parents=True)
    (field / 'wait').write_text('')
    client, _ = send(graph, bag, tmp_path / 'out')
    graph.until(lambda: server.job is not None and server.job.state.progress == 1.0, 20.0)
    client.destroy()
    (field / 'wait').unlink()
    graph.until(lambda: server.job is None, 10.0)
    assert (field / 'nerf.json').exists()


@pytest.mark.parametrize(
    ('source', 'profile', 'text'), [('missing', 'preview', 'does not exist'), ('bag', 'fast', 'unknown profile')]
)
def test_a_wrong_goal_says_why(graph, server, bag, tmp_path, source, profile, text):
    _, goal = send(graph, tmp_path / source, tmp_path / 'out', profile)
    future = goal.get_result_async()
    graph.until(future.done)
    assert future.result().status == GoalStatus.STATUS_ABORTED
    assert text in future.result().result.message and math.isnan(future.result().result.psnr_db)


def test_a_failing_stage_gives_its_own_line(graph, server, bag, tmp_path):
    field = tmp_path / 'out' / 'field'
    field.mkdir(parents=True)
    (field / 'fail').write_text('')
    _, goal = send(graph, bag, tmp_path / 'out')
    future = goal.get_result_async()
    graph.until(future.done, 20.0)
    assert future.result().result.message == 'training failed: no raws'


def test_an_input_parameter_needs_an_output(graph):
    with pytest.raises(ConfigError, match='output is empty'):
        NerfNode(parameter_overrides=[Parameter('input', value='bag')])
