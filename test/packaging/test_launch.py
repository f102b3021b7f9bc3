# SPDX-License-Identifier: Apache-2.0
"""Launch, parameter and rviz files name only things that exist (`launch` itself is on no package index)."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from dark3r_ros.nodes import interface
from dark3r_ros.nodes.node_config import GROUPS

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = sorted((ROOT / 'launch').glob('*.launch.xml'))
MAPPING = [path for path in LAUNCH if path.name != 'nerf.launch.xml']
SHARE = '$(find-pkg-share dark3r_ros)/'


def shared_file(value: str) -> Path:
    """Where a file under the package's share folder comes from in the source tree."""
    name = value.removeprefix(SHARE)
    return ROOT / ('environment/fastdds_profile.xml' if name == 'config/fastdds_profile.xml' else name)


def arguments(root: ET.Element) -> set[str]:
    return {element.attrib['name'] for element in root.findall('arg')}


@pytest.mark.parametrize('path', LAUNCH, ids=lambda path: path.name)
def test_form(path: Path) -> None:
    root = ET.parse(path).getroot()
    assert root.tag == 'launch'
    assert {element.tag for element in root} <= {'arg', 'let', 'set_env', 'node', 'include', 'group'}
    assert all(element.attrib.get('description') for element in root.findall('arg')), 'an argument has no description'


@pytest.mark.parametrize('path', LAUNCH, ids=lambda path: path.name)
def test_arguments_that_are_used_are_declared_and_the_other_way_round(path: Path) -> None:
    root = ET.parse(path).getroot()
    declared = arguments(root) | {element.attrib['name'] for element in root.findall('let')}
    values = [value for element in root.iter() for value in element.attrib.values()]
    assert set(re.findall(r'\$\(var ([^)]+)\)', ' '.join(values))) == declared
    assert {'namespace', 'params_file'} <= declared
    if path in MAPPING:
        assert {'image', 'camera_info', 'odom', 'use_sim_time'} <= declared


@pytest.mark.parametrize('path', LAUNCH, ids=lambda path: path.name)
def test_files_and_executables_exist(path: Path) -> None:
    root = ET.parse(path).getroot()
    for node in root.iter('node'):
        assert node.attrib['pkg'] == 'dark3r_ros'
        assert (ROOT / 'scripts' / node.attrib['exec']).is_file()
    values = [value for element in root.iter() for value in element.attrib.values()]
    shared = [value for value in values if value.startswith(SHARE)]
    assert shared
    for value in shared:
        assert shared_file(value).is_file(), value


@pytest.mark.parametrize('path', LAUNCH, ids=lambda path: path.name)
def test_included_files_take_what_they_are_given(path: Path) -> None:
    for include in ET.parse(path).getroot().iter('include'):
        target = ET.parse(shared_file(include.attrib['file'])).getroot()
        given = {element.attrib['name'] for element in include.findall('arg')}
        required = {element.attrib['name'] for element in target.findall('arg') if 'default' not in element.attrib}
        assert required <= given <= arguments(target)


@pytest.mark.parametrize('path', MAPPING, ids=lambda path: path.name)
def test_remapped_topics_are_inputs_of_the_node(path: Path) -> None:
    inputs = {topic.name for topic in interface.INPUTS}
    remapped = {element.attrib['from'] for element in ET.parse(path).getroot().iter('remap')}
    assert remapped
    assert remapped <= inputs


def test_online_sets_a_transport_for_large_frames_in_both_discovery_ranges() -> None:
    root = ET.parse(ROOT / 'launch' / 'online.launch.xml').getroot()
    found = {element.attrib['name']: element for element in root.findall('set_env')}
    assert found['FASTDDS_BUILTIN_TRANSPORTS'].attrib['value'] == 'LARGE_DATA'
    assert found['FASTDDS_BUILTIN_TRANSPORTS'].attrib['unless'] == found['FASTDDS_DEFAULT_PROFILES_FILE'].attrib['if']
    first_node = next(index for index, element in enumerate(root) if element.tag in ('node', 'include'))
    assert all(list(root).index(element) < first_node for element in found.values())


def test_transport_profile_is_large_enough_for_frames_and_clouds() -> None:
    space = '{http://www.eprosima.com}'
    root = ET.parse(ROOT / 'environment' / 'fastdds_profile.xml').getroot()
    memory = next(item for item in root.iter(f'{space}transport_descriptor') if item.findtext(f'{space}type') == 'SHM')
    assert int(memory.findtext(f'{space}segment_size') or 0) == 64 * 2**20
    assert int(memory.findtext(f'{space}maxMessageSize') or 0) == 16 * 2**20
    used = {item.text for item in root.iter(f'{space}transport_id')}
    assert memory.findtext(f'{space}transport_id') in used
    assert root.find(f'.//{space}participant').attrib['is_default_profile'] == 'true'  # type: ignore[union-attr]
    assert root.findtext(f'.//{space}useBuiltinTransports') == 'false'


def known_parameters(node: str) -> set[str]:
    names = {'use_sim_time'}
    if node == 'dark3r_replay':
        return names | {
            field.name for field in dataclasses.fields(pytest.importorskip('dark3r_ros.nodes.replay').ReplayConfig)
        }
    if node == 'dark3r_nerf':
        return names | {
            field.name for field in dataclasses.fields(pytest.importorskip('dark3r_ros.nodes.nerf_node').NerfNodeConfig)
        }
    for prefix, group in GROUPS.items():
        names |= {f'{prefix}.{field.name}' if prefix else field.name for field in dataclasses.fields(group)}
    return names


def flatten(values: dict[str, object], prefix: str = '') -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return flat


@pytest.mark.parametrize('path', LAUNCH, ids=lambda path: path.name)
def test_parameter_files_set_only_known_parameters_of_the_launched_nodes(path: Path) -> None:
    root = ET.parse(path).getroot()
    default = next(item.attrib['default'] for item in root.findall('arg') if item.attrib['name'] == 'params_file')
    content = yaml.safe_load(shared_file(default).read_text(encoding='utf-8'))
    launched = {element.attrib['name'] for element in root.iter('node')}
    for include in root.iter('include'):
        launched |= {element.attrib['name'] for element in ET.parse(shared_file(include.attrib['file'])).iter('node')}
    for pattern, entry in content.items():
        node = pattern.split('/')[-1].replace('**', 'dark3r_mapping')
        assert node in launched
        assert set(flatten(entry['ros__parameters'])) <= known_parameters(node)


def test_rviz_shows_topics_that_the_node_publishes() -> None:
    displays = yaml.safe_load((ROOT / 'rviz' / 'dark3r.rviz').read_text(encoding='utf-8'))['Visualization Manager']
    outputs = {topic.name.replace('~', '/dark3r_mapping'): topic for topic in interface.OUTPUTS}
    shown = {item['Class'].split('/')[1]: item for item in displays['Displays']}
    assert {'TF', 'Path', 'PointCloud2', 'Image'} <= set(shown)
    for item in displays['Displays']:
        if 'Topic' not in item or item['Class'].endswith('/Image'):
            continue
        topic = outputs[item['Topic']['Value']]
        kind = item['Class'].split('/')[1]
        assert topic.type.split('/')[-1] == {'Map': 'OccupancyGrid'}.get(kind, kind)
        latched = topic.qos == 'latched'
        assert item['Topic']['Durability Policy'] == ('Transient Local' if latched else 'Volatile')
    assert shown['Image']['Topic']['Value'] == f'/{interface.IMAGE.name}'


def layout_panels(layout: object) -> list[str]:
    """Panels of a Foxglove layout, which splits in two again and again."""
    if isinstance(layout, str):
        return [layout]
    assert isinstance(layout, dict) and layout['direction'] in ('row', 'column') and 0 < layout['splitPercentage'] < 100
    return layout_panels(layout['first']) + layout_panels(layout['second'])


def test_foxglove_shows_topics_and_fields_that_the_node_publishes() -> None:
    content = json.loads((ROOT / 'rviz' / 'foxglove_dark3r.json').read_text(encoding='utf-8'))
    panels = content['configById']
    assert sorted(layout_panels(content['layout'])) == sorted(panels)
    outputs = {topic.name.replace('~', '/dark3r_mapping') for topic in interface.OUTPUTS}
    assert set(panels['3D!dark3r']['topics']) <= outputs
    assert panels['Image!dark3r']['imageMode'] == {
        'imageTopic': f'/{interface.IMAGE.name}', 'calibrationTopic': f'/{interface.CAMERA_INFO.name}'
    }  # fmt: skip
    lines = (ROOT / 'msg' / 'MappingStatus.msg').read_text(encoding='utf-8').splitlines()
    fields = {line.split()[1] for line in lines if line and not line.startswith('#') and '=' not in line}
    plotted = [path['value'] for name, panel in panels.items() if name.startswith('Plot!') for path in panel['paths']]
    assert len(plotted) > 3
    for value in plotted:
        topic, field = value.split('.')
        assert topic in outputs and field in fields
    assert panels['RawMessages!status']['topicPath'] in outputs
    assert panels['DiagnosticSummary!dark3r']['topicToRender'] in outputs
