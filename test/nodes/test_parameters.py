# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import pytest
import rclpy
import yaml
from rcl_interfaces.srv import DescribeParameters
from rclpy.parameter import Parameter

from dark3r_ros.errors import ConfigError
from dark3r_ros.nodes import parameters, reference
from dark3r_ros.nodes.mapping_node import MappingNode
from dark3r_ros.nodes.nerf_node import NerfNodeConfig
from dark3r_ros.nodes.node_config import GROUPS, NodeConfig
from dark3r_ros.nodes.replay import ReplayConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'config').glob('*.yaml'))
OF_NODE = {'dark3r_replay': {'': ReplayConfig}, 'dark3r_nerf': {'': NerfNodeConfig}}  # all others: the mapping node


def declared(groups) -> dict[str, type]:
    return {
        parameters.parameter_name(prefix, item.name): cls
        for prefix, cls in groups.items()
        for item in dataclasses.fields(cls)
    }


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.name)
def test_every_key_of_the_shipped_files_is_declared_and_valid(path, graph):
    content = yaml.safe_load(path.read_text())
    assert content
    for pattern, body in content.items():
        groups = OF_NODE.get(pattern.rsplit('/', 1)[-1], GROUPS)
        values = body['ros__parameters']
        assert values and set(values) <= set(declared(groups))
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = graph.add(rclpy.create_node('reader', parameter_overrides=overrides))
        parameters.declare(node, groups)
        for prefix, cls in groups.items():
            config = parameters.read(node, prefix, cls)
            for item in dataclasses.fields(cls):
                name = parameters.parameter_name(prefix, item.name)
                assert getattr(config, item.name) == values.get(name, item.default)


def test_online_and_replay_files_are_shipped():
    assert {'online.yaml', 'replay.yaml'} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize('namespace', ['', '/robot'])
def test_the_replay_file_reaches_the_node_in_any_namespace(graph, namespace):
    arguments = ['--ros-args', '--params-file', str(ROOT / 'config' / 'replay.yaml')]
    node = graph.add(MappingNode(cli_args=arguments, namespace=namespace))
    assert (node.config.queue_length, node.config.image_reliability) == (20, 'reliable')


def test_defaults_validate_and_come_back_from_the_node(make_node):
    node = make_node(start=False)
    for prefix, cls in GROUPS.items():
        assert parameters.read(node, prefix, cls) == cls()


def test_descriptors_carry_range_unit_and_meaning(make_node, graph):
    make_node(start=False)
    request = DescribeParameters.Request(names=['map_period', 'queue_length', 'image_reliability', 'mapping.max_error'])
    period, queue, reliability, error = graph.call(
        DescribeParameters, '/dark3r_mapping/describe_parameters', request
    ).descriptors
    assert (period.floating_point_range[0].from_value, period.floating_point_range[0].to_value) == (0.5, 3600.0)
    assert 'Unit: s.' in period.description and not period.read_only
    assert (queue.integer_range[0].from_value, queue.read_only) == (1, True)
    assert 'best_effort, reliable' in reliability.description
    assert 'Unit: px.' in error.description


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('queue_length', 0, 'queue_length'),
        ('queue_length', 2.5, 'must be int'),
        ('map_period', 5, 'write 5.0 rather than 5'),
        ('image_reliability', 'sometimes', 'best_effort, reliable'),
        ('mapping__max_error', 1e9, 'max_error'),
        ('queue_lenght', 3, 'did you mean queue_length'),
        ('base_frame', 'map', 'three different names'),
    ],
)
def test_bad_values_are_refused_with_a_reason(make_node, name, value, words):
    with pytest.raises(ConfigError, match=words):
        make_node(start=False, **{name: value})


def test_a_noise_model_is_named_once(make_node):
    with pytest.raises(ConfigError, match='exclude each other'):
        make_node(start=False, noise_preset='starvis', noise_file='x.yaml')


def test_dynamic_parameters_change_and_static_ones_do_not(make_node):
    node = make_node()
    change = node.set_parameters([Parameter('publish_tf', value=False), Parameter('map_period', value=2.5)])
    assert all(result.successful for result in change)
    assert (node.config.publish_tf, node.config.map_period) == (False, 2.5)
    assert node.outputs.config is node.config
    for name, value in (('queue_length', 5), ('map_period', 0.001), ('map_voxels', 1)):
        result = node.set_parameters([Parameter(name, value=value)])[0]
        assert not result.successful and result.reason
    assert node.config == dataclasses.replace(NodeConfig(), publish_tf=False, map_period=2.5)


def test_the_reference_is_the_one_of_the_code():
    text = (ROOT / 'docs' / 'ros.md').read_text()
    assert text == reference.document(), 'run: python -m dark3r_ros.nodes.reference > docs/ros.md'
    for name in declared(GROUPS):
        assert f'`{name}`' in text


def test_the_tables_of_the_readme_are_those_of_the_code():
    text = (ROOT / 'README.md').read_text()
    assert text == reference.with_tables(text), 'run: python -m dark3r_ros.nodes.reference --readme README.md'
    assert '`~/odometry`' in text and '`~/save_map`' in text
