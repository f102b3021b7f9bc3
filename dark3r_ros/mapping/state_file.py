# SPDX-License-Identifier: Apache-2.0
"""A live map in a folder, and back: everything that localising in it and going on with it needs.

`map.json` holds what is text, `map.npz` the arrays, `features.npz` the packed features of each keyframe that can be
matched. Nothing that is read is executed.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import CalibrationError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.geometry.rolling import RollingCamera
from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.packing import FEATURE_TYPES, FeatureTypes, pack, unpack
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.storage.files import replacing_folder

Arrays = Mapping[str, NDArray[Any]]

FORMAT = 2  # 1 knew nothing of odometry: neither the unit of a map nor where the wheels were
_READABLE = (1, FORMAT)
STATE_FILE = 'map.json'
STATE_FOLDER = 'state'  # where a result folder keeps the live map
_ARRAYS, _FEATURES = 'map.npz', 'features.npz'


def write_state(
    folder: Path | str, atlas: Atlas, log: PoseLog, camera: Camera | None, predictor: Predictor, *, overwrite: bool
) -> None:
    """Write a live map, all or nothing. Raises OutputError."""
    cameras: list[Camera] = []
    frame_ids: list[str] = []
    arrays: dict[str, NDArray[Any]] = {}
    submaps = atlas.submaps
    for submap in submaps:
        arrays |= _submap_arrays(submap, cameras, frame_ids)
    arrays |= {f'places/{key}': value for key, value in atlas.places.state().items()}
    log_arrays, log_texts = log.state()
    arrays |= {f'log/{key}': value for key, value in log_arrays.items()}
    head = {
        'format': FORMAT,
        'predictor': predictor.name,
        'fingerprint': predictor.fingerprint,
        'camera': None if camera is None else asdict(camera),
        'cameras': [asdict(one) for one in cameras],
        'frame_ids': frame_ids,
        'submaps': [submap.submap_id for submap in submaps],
        'log': log_texts,
    }
    with replacing_folder(folder, overwrite=overwrite, marker=STATE_FILE) as target:
        with (target / _ARRAYS).open('wb') as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        _write_features(target / _FEATURES, submaps)
        (target / STATE_FILE).write_text(json.dumps(head, indent=1) + '\n', encoding='utf-8')


class SavedState:
    """A saved map, checked before anything of it is used.

    Parameters
    ----------
    folder: of `write_state`, or a result folder that holds one.
    predictor: the one that is going to match; features of another one mean nothing to it.

    Raises DataError.

    """

    def __init__(self, folder: Path | str, predictor: Predictor) -> None:
        folder = Path(folder)
        self.folder = folder / STATE_FOLDER if (folder / STATE_FOLDER / STATE_FILE).is_file() else folder
        self.head = self._read_head()
        if self.head['fingerprint'] != predictor.fingerprint:
            raise DataError(
                f'the map {folder} was made with the predictor {self.head["predictor"]} {self.head["fingerprint"]}, '
                f'this is {predictor.name} {predictor.fingerprint}: use the same weights and matcher settings'
            )
        with self._reading():
            camera = self.head['camera']
            self.camera = None if camera is None else _camera(camera)

    def _read_head(self) -> dict[str, Any]:
        path = self.folder / STATE_FILE
        try:
            head = json.loads(path.read_text(encoding='utf-8'))
        except OSError as error:
            raise DataError(f'{self.folder} is no saved map: cannot read {STATE_FILE} ({error.strerror})') from error
        except ValueError as error:
            raise DataError(f'{path} is not valid JSON ({error})') from error
        if not isinstance(head, dict) or head.get('format') not in _READABLE:
            found = head.get('format') if isinstance(head, dict) else None
            raise DataError(f'{path}: format {found!r} of a saved map is not known, {FORMAT} and older are')
        missing = {'predictor', 'fingerprint', 'camera', 'cameras', 'frame_ids', 'submaps', 'log'} - set(head)
        if missing:
            raise DataError(f'{path} lacks {sorted(missing)[0]!r}')
        return head

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f'the saved map {self.folder} cannot be read: {error.strerror or error}') from error
        except (ValueError, KeyError, IndexError, TypeError, EOFError, CalibrationError, zipfile.BadZipFile) as error:
            raise DataError(f'the saved map {self.folder} is damaged: {error}') from error

    def read(
        self,
        config: MappingConfig,
        device: Any = 'cpu',
        types: FeatureTypes = FEATURE_TYPES,
        loaded: Callable[[Atlas], None] = lambda _: None,
    ) -> tuple[Atlas, PoseLog]:
        """Submaps and log; `loaded` is called now and then so that memory can be kept in bounds. Raises DataError."""
        with self._reading():
            with np.load(self.folder / _ARRAYS, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            cameras = [_camera(values) for values in self.head['cameras']]
            frame_ids = [str(text) for text in self.head['frame_ids']]
            submaps = [_submap(int(key), arrays, cameras, frame_ids, config) for key in self.head['submaps']]
            if not any(submap.map.keyframes for submap in submaps):
                raise DataError(f'the saved map {self.folder} holds no keyframe')
            atlas = Atlas(config)
            atlas.restore(submaps, _part(arrays, 'places/'))
            log = PoseLog()
            log.restore(_part(arrays, 'log/'), self.head['log'])
            self._read_features(atlas, device, types, loaded)
        return atlas, log

    def _read_features(self, atlas: Atlas, device: Any, types: FeatureTypes, loaded: Callable[[Atlas], None]) -> None:
        keyframes = [keyframe for submap in atlas.submaps for keyframe in submap.map.keyframes]
        with np.load(self.folder / _FEATURES, allow_pickle=False) as file:
            for number, keyframe in enumerate(keyframes):
                if str(keyframe.keyframe_id) in file:
                    keyframe.loaded = unpack(file[str(keyframe.keyframe_id)].tobytes(), device, types)
                if number % 32 == 31:
                    loaded(atlas)


def _write_features(path: Path, submaps: list[Submap]) -> None:
    """One member for each matchable keyframe, written one by one so that they need not be in memory together."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        for submap in submaps:
            for keyframe in submap.map.keyframes:
                was_loaded, features = keyframe.loaded is not None, keyframe.features
                if features is None:
                    continue
                with archive.open(f'{keyframe.keyframe_id}.npy', 'w') as stream:
                    np.lib.format.write_array(stream, np.frombuffer(pack(features), np.uint8), allow_pickle=False)
                if not was_loaded:
                    keyframe.loaded = None


def _submap_arrays(submap: Submap, cameras: list[Camera], frame_ids: list[str]) -> dict[str, NDArray[Any]]:
    keyframes = submap.map.keyframes

    def number(values: list[Any], value: Any) -> int:
        if value not in values:
            values.append(value)
        return values.index(value)

    parents = np.full((len(keyframes), 8), -1, dtype=np.int64)
    for row, keyframe in enumerate(keyframes):
        parents[row, : len(keyframe.parents)] = keyframe.parents[:8]
    tables = [keyframe.table for keyframe in keyframes]
    wheels = [keyframe.odometry for keyframe in keyframes]
    landmarks = submap.map.landmarks
    cloud = submap.archive.cloud.cloud()
    arrays = {
        'ids': np.array([keyframe.keyframe_id for keyframe in keyframes], dtype=np.int64),
        'stamps_ns': np.array([keyframe.stamp_ns for keyframe in keyframes], dtype=np.int64),
        'poses': np.array([keyframe.camera_from_world for keyframe in keyframes]).reshape(-1, 4, 4),
        'snr_db': np.array([keyframe.snr_db for keyframe in keyframes], dtype=np.float64),
        'camera': np.array([number(cameras, keyframe.camera) for keyframe in keyframes], dtype=np.int64),
        'frame_id': np.array([number(frame_ids, keyframe.frame_id) for keyframe in keyframes], dtype=np.int64),
        'parents': parents,
        'retired': np.array([submap.map.is_retired(keyframe) for keyframe in keyframes], dtype=bool),
        'points_each': np.array([len(table) for table in tables], dtype=np.int64),
        'named': np.array([table.named for table in tables], dtype=bool),
        'pixels': np.concatenate([np.zeros((0, 2)), *(table.pixels for table in tables)]),
        'seen': np.concatenate([np.zeros(0, np.int64), *(table.landmark for table in tables)]),
        'landmarks': landmarks.points,
        'colors': landmarks.colors,
        'alive': landmarks.alive,
        'guessed': landmarks.guessed,
        'cloud': cloud.points,
        'cloud_colors': cloud.colors,
        'ties': np.array(submap.ties, dtype=np.int64).reshape(-1, 2),
        'bridges': np.array(submap.bridges, dtype=np.float64).reshape(-1, 5),
        'usual': submap.trust.state(),
        'metres': np.array(submap.metres),
        'odometry': np.array([np.eye(4) if one is None else one[0] for one in wheels]).reshape(-1, 4, 4),
        'odometry_known': np.array([one is not None for one in wheels], dtype=bool),
        'odometry_piece': np.array([0 if one is None else one[1] for one in wheels], dtype=np.int64),
        'averaged': np.array([keyframe.averaged for keyframe in keyframes], dtype=np.int64),
        **submap.archive.state(),
    }
    return {f'{submap.submap_id}/{key}': value for key, value in arrays.items()}


def _part(arrays: Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def _camera(values: dict[str, Any]) -> Camera:
    values = {**values, 'distortion': tuple(values['distortion'])}
    return RollingCamera(**{**values, 'turn': tuple(values['turn'])}) if 'turn' in values else Camera(**values)


def _submap(
    submap_id: int, everything: Arrays, cameras: list[Camera], frame_ids: list[str], config: MappingConfig
) -> Submap:
    arrays = _part(everything, f'{submap_id}/')
    submap = Submap.empty(submap_id, config, itertools.count())
    # Maps that were saved before there were provisional landmarks have none.
    guessed = arrays.get('guessed', np.zeros(len(arrays['alive'])))
    submap.map.landmarks.restore(arrays['landmarks'], arrays['colors'], arrays['alive'], guessed)
    ends = np.cumsum(arrays['points_each'])
    for row, end in enumerate(ends.tolist()):
        keyframe = Keyframe(
            int(arrays['ids'][row]),
            int(arrays['stamps_ns'][row]),
            frame_ids[int(arrays['frame_id'][row])],
            cameras[int(arrays['camera'][row])],
            arrays['poses'][row],
            float(arrays['snr_db'][row]),
            None,
        )
        part = slice(end - int(arrays['points_each'][row]), end)
        named = bool(arrays['named'][row])
        seen = arrays['seen'][part].copy()
        if seen.max(initial=-1) >= submap.map.landmarks.capacity:
            raise ValueError('a keyframe sees a landmark that is not there')
        keyframe.table.restore(arrays['pixels'][part].copy(), seen, named=named)
        keyframe.parents = tuple(int(key) for key in arrays['parents'][row] if key >= 0)
        submap.map.keyframes.append(keyframe)
    keyframes = submap.map.keyframes
    submap.map.retire(keyframe for keyframe, retired in zip(keyframes, arrays['retired'], strict=True) if retired)
    submap.archive.restore(arrays, keyframes)
    submap.archive.cloud.add(arrays['cloud'].astype(np.float64), arrays['cloud_colors'])
    submap.ties = [(int(first), int(second)) for first, second in arrays['ties']]
    # Maps that were saved before there were bridges have none.
    for first, second, *sigma in arrays.get('bridges', np.zeros((0, 5))).tolist():
        submap.bridges.append((int(first), int(second), *sigma))
    submap.trust.restore(arrays['usual'])
    _restore_odometry(submap, arrays, everything)
    return submap


def _restore_odometry(submap: Submap, arrays: Arrays, everything: Arrays) -> None:
    """What odometry said of a map; that of the next session begins anew, and does not lead on from it."""
    keyframes = submap.map.keyframes
    for keyframe in keyframes:
        # Of a keyframe without odometry nothing may be looked up later: another session may have the same stamps.
        keyframe.odometry = (np.eye(4), -1 - keyframe.keyframe_id)
    if 'odometry' not in arrays:
        return
    submap.metres = float(arrays['metres'])
    # Pieces of a session count from 0, those of all submaps together; keyframes without odometry lie below it.
    largest = max(int(value.max(initial=0)) for key, value in everything.items() if key.endswith('/odometry_piece'))
    below = max(int(value.max(initial=0)) for key, value in everything.items() if key.endswith('/ids'))
    pieces = arrays['odometry_piece'] - largest - below - 2
    rows = zip(keyframes, arrays['odometry'], arrays['odometry_known'].tolist(), pieces.tolist(), strict=True)
    for keyframe, pose, known, piece in rows:
        if known:
            keyframe.odometry = (pose, piece)
    for keyframe, averaged in zip(keyframes, arrays['averaged'].tolist(), strict=True):
        keyframe.averaged = averaged
