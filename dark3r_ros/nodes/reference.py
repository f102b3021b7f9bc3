# SPDX-License-Identifier: Apache-2.0
"""Tables of topics, services and parameters from the code.

`python -m dark3r_ros.nodes.reference > docs/ros.md` makes the reference, `... --readme README.md` renews the tables of
the README.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from dark3r_ros.config import Config
from dark3r_ros.nodes import interface
from dark3r_ros.nodes.node_config import GROUPS
from dark3r_ros.nodes.parameters import parameter_name
from dark3r_ros.nodes.recorder import RecorderConfig
from dark3r_ros.nodes.replay import ReplayConfig
from dark3r_ros.types import MappingState

README_START = '<!-- tables of the mapping node: `python -m dark3r_ros.nodes.reference --readme README.md` -->'
README_END = '<!-- end of the tables -->'

_INTRODUCTION = """\
<!-- Made by `python -m dark3r_ros.nodes.reference`; a test compares it with the code. -->
# ROS 2 reference

`mapping_node` is a lifecycle node. With `autostart` (default) it configures and activates itself; without, a lifecycle
manager or `ros2 lifecycle set /dark3r_mapping configure` does. Images are taken while it is active. Deactivating keeps
the map, cleaning up forgets it, shutting down saves it when `save_on_shutdown` names a folder.

Every output carries the stamp of the image it belongs to, to the nanosecond. Poses are those of `base_frame` in
`map_frame` (REP-103 axes, REP-105 frames); the map starts at the first posed position of the base. While the
camera is lost nothing is published on /tf and ~/odometry.

Scale: with `use_odometry` (default) it is found from the topic `odom`, or from odom -> base on /tf where nobody
publishes that topic; slips, dropouts and jumps are left out. Until then poses are in a unit of their own
(`metric_scale` false, `scale_text` says why) and map -> odom is not published, since it would mix that unit with
metres. Once it is known, and again when it turns out to be wrong by more than `metric.change`, path, keyframes, map
and transform change to it together; clouds of single keyframes that were sent before stay in the old unit.
`scale_deviation` comes from the scatter of the odometry against vision: a wrong wheel diameter does not show in it.
While the map grows the odometry also holds its unit, which vision alone lets creep; turns and directions stay those of
vision. Where no odometry tells the scale, `mapping.camera_height` does, and holds the unit: the height in metres of the
camera above a ground that it sees while it looks ahead, tilted by no more than 25 degrees.

Jumps: a pose that the odometry speaks against is not published but counts as lost, since places of a tunnel look alike;
after 30 such poses in a row the odometry is taken to be wrong. Without odometry a jump is doubted while the camera is
followed, and a lost camera is not placed where another place looks as right.

Blackouts: what is seen after one, and does not show a known place, begins a submap. With odometry over the gap (at most
60 s and 30 m) it is joined to the map once its scale is known to 10 %, after some steps of 5 cm, and put right as that
gets surer; without odometry it waits for a known place.

Drop policy: at most `queue_length` images wait. When one more arrives, that one is dropped whose neighbours are
nearest to each other, by odometry where there is one, else in time: images of a standing camera go first, those that
a new keyframe needs last. They are counted in `frames_dropped`; gaps between stamps are counted in `frames_missing`,
since those frames never reached the node.

Quality without a truth: `reprojection` of ~/status is how far, in pixels of the planes, what agrees with the newest
pose lies from where the map has it (median), `found_again` the share of the landmarks that was found, there and back,
and agrees; `inliers` of `matches`, the covariance of ~/odometry and `scale_deviation` say the rest. A pose that slowly
gets worse shows first in `found_again`.

At rest: below `mapping.rest_snr` up to `mapping.rest_frames` frames are averaged while pictures and odometry show that
the camera stands still; `snr_db`, `samples_per_value` and `message` of ~/status are then those of the average, and
/diagnostics counts its frames. Whatever moves, or changes exposure, gain, size or light, begins anew with one frame.

Saved maps: `~/save_map` writes a result folder, in metres where the scale is known, with `state/` and
`map_frame.json`. `~/load_map` and `load_on_start` go on in it: the map frame and the unit stay those of the saved map,
which odometry goes on to hold.

Navigation: with `publish_grid`, ~/grid comes with every ~/map as soon as lengths are metres. A cell with `grid_points`
points between `grid_low` and `grid_high` above the nearest place of the base is an obstacle; cells that a sight line of
the camera crosses, and those that the robot drove over, are free. The structure is sparse: a smooth wall without
texture leaves its cells unknown, so plan with unknown as an obstacle and keep a bumper.

`rviz/dark3r.rviz` and `rviz/foxglove_dark3r.json` (import layout) show all of it.

Fast DDS loses nearly all large frames with its default transports: set `FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA` for
every process of the graph, as the launch files do (with `ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST`: the shared-memory
profile `config/fastdds_profile.xml` instead).
"""

_STATES = {
    MappingState.WAITING_FOR_CALIBRATION: 'no usable image yet: no image, or no camera_info of its size',
    MappingState.INITIALISING: 'looking for two frames with enough parallax',
    MappingState.TRACKING: 'poses are published',
    MappingState.DEGRADED: 'poses may be poor or missing: too dark, blurred, saturated or few matches',
    MappingState.LOST: 'several frames in a row had no pose; the node keeps looking for its place',
    MappingState.RELOCALISING: 'a place was recognised and is being confirmed',
    MappingState.ERROR: 'error_after frames in a row failed with an error of the program; the map is kept and every '
    'frame is tried; one that succeeds ends it',
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines) + '\n'


def topics_table(topics: Iterable[interface.Topic]) -> str:
    """Build the table of some topics."""
    words = {'image': 'see image_reliability', 'sensor': 'best effort'}
    return table(
        ('topic', 'type', 'QoS', 'meaning'),
        ((f'`{item.name}`', item.type, words.get(item.qos, item.qos), item.doc) for item in topics),
    )


def services_table() -> str:
    """Build the table of all services."""
    return table(('service', 'type', 'meaning'), ((f'`{s.name}`', s.type, s.doc) for s in interface.SERVICES))


def _range(item: dataclasses.Field[Any]) -> str:
    if item.metadata.get('choices'):
        return ', '.join(str(choice) for choice in item.metadata['choices'])
    low, high = item.metadata.get('minimum'), item.metadata.get('maximum')
    if low is None and high is None:
        return ''
    if high is None:
        return f'>= {low:g}'
    return f'<= {high:g}' if low is None else f'{low:g} to {high:g}'


def parameters_table(groups: dict[str, type[Config]]) -> str:
    """Build the table of the parameters of some configurations."""
    rows = []
    for prefix, cls in groups.items():
        hints = get_type_hints(cls)
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            default = repr(item.default) if isinstance(item.default, str) else str(item.default).lower()
            rows.append(
                (
                    f'`{parameter_name(prefix, item.name)}`',
                    {int: 'int', float: 'double', bool: 'bool', str: 'string'}[hints[item.name]],
                    default,
                    _range(item),
                    str(item.metadata['unit']),
                    'yes' if item.metadata['dynamic'] else '',
                    str(item.metadata['doc']),
                )
            )
    return table(('parameter', 'type', 'default', 'range', 'unit', 'at run time', 'meaning'), rows)


def mapping_tables() -> str:
    """Topics, services and parameters of the mapping node."""
    return '\n'.join(
        [
            '### Subscribed topics\n',
            topics_table(interface.INPUTS),
            '### Published topics\n',
            topics_table(interface.OUTPUTS),
            '### Services\n',
            services_table(),
        ]
    )


def document() -> str:
    """Build the whole of docs/ros.md."""
    states = table(
        ('number', 'state', 'meaning'),
        ((str(int(state)), state.name.lower(), meaning) for state, meaning in _STATES.items()),
    )
    return (
        '\n'.join(
            [
                _INTRODUCTION,
                '## Mapping node `dark3r_mapping`\n',
                mapping_tables(),
                '### States\n',
                states,
                '### Parameters\n',
                'Given by `--ros-args --params-file config/online.yaml` or `-p name:=value`; unknown names and values\n'
                'out of range are refused. Those marked in "at run time" may change while the node runs.\n',
                parameters_table(GROUPS),
                '## Replay node `dark3r_replay`\n',
                'Plays a bag or a folder of frames with its own stamps: `python -m dark3r_ros.nodes.replay '
                '--ros-args -p bag:=tunnel`.\n',
                parameters_table({'': ReplayConfig}),
                '## Recorder node `dark3r_recorder`\n',
                'Writes a result folder from the topics of a mapping node: `python -m dark3r_ros.nodes.recorder '
                '--ros-args -p output:=out`.\n',
                parameters_table({'': RecorderConfig}),
            ]
        ).rstrip()
        + '\n'
    )


def with_tables(readme: str) -> str:
    """Text of a README with the tables between its two markers renewed."""
    before, rest = readme.split(README_START, 1)
    _, after = rest.split(README_END, 1)
    tables = re.sub(r'^### (.*)$', r'**\1**', mapping_tables(), flags=re.MULTILINE)
    return f'{before}{README_START}\n\n{tables}\n{README_END}{after}'


def main(argv: Sequence[str]) -> int:
    """Print the reference, or renew the README given after `--readme`."""
    if len(argv) == 2 and argv[0] == '--readme':
        path = Path(argv[1])
        path.write_text(with_tables(path.read_text()))
    else:
        print(document(), end='')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
