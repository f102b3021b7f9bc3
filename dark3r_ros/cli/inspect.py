# SPDX-License-Identifier: Apache-2.0
"""`dark3r inspect`: what a recording holds and whether it is fit for the dark."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.cli.common import add_decode_arguments, decode_options, print_json, progress
from dark3r_ros.cli.inspect_pair import inspect_pair, pair_line
from dark3r_ros.errors import Dark3rError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.matching.registry import PREDICTORS, make_predictor
from dark3r_ros.raw.noise import NoiseModel, resolve_noise
from dark3r_ros.storage.bag_reader import BagReader, is_bag
from dark3r_ros.storage.bag_source import BagSource
from dark3r_ros.storage.files import replacing
from dark3r_ros.storage.inspection import FrameStatistics, Timing, frame_statistics, level_guesses, timing
from dark3r_ros.storage.ros_messages import IMAGE, deserialize
from dark3r_ros.storage.sequence import camera_json, default_stamp_ns, read_cameras_json
from dark3r_ros.storage.source import FolderSource, open_source
from dark3r_ros.types import Frame

NAME = 'inspect'
HELP = 'show topics, rates, encodings, levels, SNR, gaps and calibration of a recording'
EXAMPLE = 'dark3r inspect night.mcap -o night.png'

# Beyond this size the header stamps are not read one by one; the times of recording in the index stand in.
_FULL_PASS_BYTES = 4_000_000_000
_SHOWN_GAPS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument('input', type=Path, help='bag, .mcap or .db3 file, sequence folder, raw folder or raw file')
    parser.add_argument('-o', '--output', type=Path, help='contact sheet (default: ./NAME_inspect.png)')
    parser.add_argument('--no-sheet', action='store_true', help='write no contact sheet')
    parser.add_argument('--samples', type=int, default=9, metavar='N', help='frames to look into (default: 9)')
    parser.add_argument('--image-topic', default='', help='image topic (default: the only one there is)')
    parser.add_argument('--info-topic', default='', help='CameraInfo topic (default: the one beside the images)')
    parser.add_argument('--camera', type=Path, metavar='FILE', help='cameras.json with the intrinsics')
    parser.add_argument('--noise', default='', metavar='NAME|FILE', help='noise model (default: estimated)')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument(
        '--pair', type=int, nargs=2, metavar=('A', 'B'), help='match frames number A and B and draw that instead'
    )
    parser.add_argument(
        '--predictor', default=PREDICTORS[0], metavar='NAME|FILE', help='matcher of --pair (default: %(default)s)'
    )
    add_decode_arguments(parser)


def _bag_summary(reader: BagReader) -> dict[str, Any]:
    times = reader.log_times() if reader.indexed else {}
    topics = []
    for topic in reader.topics:
        rate = timing(times[topic.name]).rate_hz if topic.name in times else float('nan')
        topics.append({'name': topic.name, 'type': topic.type, 'count': topic.count, 'rate_hz': rate, 'qos': topic.qos})
    return {
        'topics': topics,
        'duration_s': (reader.end_ns - reader.start_ns) / 1e9,
        'size_bytes': reader.size_bytes,
        'warnings': list(reader.warnings),
    }


def _stamps(source: BagSource | FolderSource) -> tuple[NDArray[np.int64], str]:
    if isinstance(source, BagSource) and source.reader.indexed and source.reader.size_bytes > _FULL_PASS_BYTES:
        return source.log_times_ns, 'times of recording (the bag is too long to read every header)'
    stamps = source.stamps_ns
    if isinstance(source, BagSource):
        return stamps, 'header stamps'
    assumed = len(stamps) > 0 and all(stamp == default_stamp_ns(index) for index, stamp in enumerate(stamps))
    return stamps, 'assumed, the files carry no times' if assumed else 'cameras.json'


def _timing_figures(measured: Timing, origin: str) -> dict[str, Any]:
    return {
        'from': origin,
        'rate_hz': measured.rate_hz,
        'duration_s': measured.duration_s,
        'gaps': [{'at_s': at, 'length_s': length} for at, length in measured.gaps],
        'repeated': measured.repeated,
        'backward': measured.backward,
    }


def _image_figures(frame: Frame, source: BagSource | FolderSource) -> dict[str, Any]:
    figures: dict[str, Any] = {
        'width': frame.size[0],
        'height': frame.size[1],
        'cfa': frame.cfa,
        'black_level': list(frame.black_level),
        'white_level': frame.white_level,
        'processed': frame.processed,
        'frame_id': frame.frame_id,
    }
    if isinstance(source, BagSource):
        message = next(iter(source.reader.messages([source.image_topic])))
        image = deserialize(message.data, IMAGE)
        figures |= {'topic': source.image_topic, 'encoding': image.encoding, 'step': int(image.step)}
        figures['info_topic'] = source.info_topic
    return figures


def _statistics_figures(items: list[FrameStatistics]) -> dict[str, Any]:
    snr = np.array([item.snr_db for item in items], dtype=np.float64)
    known = snr[np.isfinite(snr)]
    names = items[0].percentiles
    return {
        'sampled_frames': len(items),
        'sizes': sorted({f'{item.size[0]}x{item.size[1]}' for item in items}),
        'percentiles': {name: float(np.median([item.percentiles[name] for item in items])) for name in names},
        'saturated_share': float(np.mean([item.saturated_share for item in items])),
        'guess': level_guesses(items),
        'snr_db': {
            'min': float(known.min()) if known.size else None,
            'median': float(np.median(known)) if known.size else None,
            'max': float(known.max()) if known.size else None,
        },
        'raw_pixels_per_value': list(items[0].samples_per_value),
        'advice': _distinct([text for item in items for text in item.advice]),
    }


def _distinct(texts: list[str]) -> list[str]:
    """Sentences that differ in more than their numbers, the first of each kind."""
    kinds: dict[str, str] = {}
    for text in texts:
        kinds.setdefault(re.sub(r'[\d.]+(e[+-]?\d+)?', '#', text), text)
    return list(kinds.values())


def _inspect_frames(
    source: BagSource | FolderSource, count: int, noise: NoiseModel | None
) -> tuple[dict[str, Any], list[FrameStatistics]]:
    stamps, origin = _stamps(source)
    items: list[FrameStatistics] = []
    first: Frame | None = None
    for frame in progress(source.sample(max(1, count)), count, 'frames'):
        first = first or frame
        items.append(frame_statistics(frame, noise))
    if first is None:
        raise DataError('no image of the recording can be decoded')
    result = {
        'frames': len(stamps),
        'image': _image_figures(first, source),
        'timing': _timing_figures(timing(stamps), origin),
        **_statistics_figures(items),
        'camera': None if first.camera is None else camera_json(first.camera),
        'warnings': list(source.warnings),
    }
    return result, items


def _write_sheet(path: Path, items: list[FrameStatistics]) -> None:
    from dark3r_ros.evaluation.figures import SamplePicture, samples_figure

    first = items[0].stamp_ns
    pictures = []
    for item in items:
        label = item.name or f'{(item.stamp_ns - first) / 1e9:.2f} s'
        pictures.append(SamplePicture(item.stamp_ns, item.picture, f'{label}, {item.snr_db:.1f} dB'))
    with replacing(path) as stream:
        stream.write(samples_figure(pictures))


def _topic_lines(bag: dict[str, Any]) -> list[str]:
    lines = [f'bag: {bag["duration_s"]:.1f} s, {bag["size_bytes"] / 1e6:.1f} MB', 'topics:']
    width = max((len(topic['name']) for topic in bag['topics']), default=0)
    for topic in bag['topics']:
        rate = f'{topic["rate_hz"]:.2f} Hz' if topic['rate_hz'] == topic['rate_hz'] else '-'
        lines.append(
            f'  {topic["name"]:<{width}}  {topic["type"]}  {topic["count"]} messages  {rate}  {topic["qos"]}'.rstrip()
        )
    return lines if bag['topics'] else [*lines[:1], 'topics: none']


def _timing_line(figures: dict[str, Any]) -> list[str]:
    gaps = figures['gaps']
    rate = f'{figures["rate_hz"]:.3f} Hz' if math.isfinite(figures['rate_hz']) else 'no rate'
    lines = [f'timing ({figures["from"]}): {rate} over {figures["duration_s"]:.2f} s']
    if gaps:
        shown = ', '.join(f'{gap["length_s"]:.3g} s at {gap["at_s"]:.2f} s' for gap in gaps[:_SHOWN_GAPS])
        lines.append(f'gaps: {len(gaps)}, longest {shown}')
    else:
        lines.append('gaps: none')
    if figures['repeated'] or figures['backward']:
        lines.append(f'stamps: {figures["repeated"]} repeat the one before, {figures["backward"]} go back')
    return lines


def _camera_line(camera: dict[str, Any] | None) -> str:
    if camera is None:
        return 'calibration: none'
    model = camera.get('distortion_model', 'no distortion')
    return (
        f'calibration: {camera["width"]}x{camera["height"]}, fx {camera["fx"]:.2f} fy {camera["fy"]:.2f} '
        f'cx {camera["cx"]:.2f} cy {camera["cy"]:.2f}, {model} {camera.get("distortion", "")}'.rstrip()
    )


def _frame_lines(figures: dict[str, Any]) -> list[str]:
    image, guess, snr = figures['image'], figures['guess'], figures['snr_db']
    percentiles = '  '.join(f'{name} {value:.0f}' for name, value in figures['percentiles'].items())
    encoding = image.get('encoding') or ('picture' if image['processed'] else f'{image["cfa"]} mosaic')
    levels = ' '.join(f'{value:g}' for value in image['black_level'])
    ratio = 'unknown' if snr['median'] is None else f'{snr["min"]:.1f} / {snr["median"]:.1f} / {snr["max"]:.1f} dB'
    return [
        f'images: {figures["frames"]} of {", ".join(figures["sizes"])}, {encoding}, phase {image["cfa"]}',
        *_timing_line(figures['timing']),
        f'levels in use: black {levels} (R G B), white {image["white_level"]:g}',
        f'counts of {figures["sampled_frames"]} sampled frames (median): {percentiles}; '
        f'{figures["saturated_share"]:.2%} saturated; {guess["bits_in_use"]} bits in use',
        f'SNR min / median / max: {ratio} (estimated from {figures["sampled_frames"]} sampled frames, '
        f'{"/".join(map(str, figures["raw_pixels_per_value"]))} raw pixels per R/G/B value)',
        _camera_line(figures['camera']),
    ]


def _camera(args: argparse.Namespace) -> Camera | None:
    return read_cameras_json(args.camera).camera if args.camera else None


def _print_list(title: str, texts: list[str]) -> None:
    if texts:
        print('\n'.join([f'{title}:', *(f'  - {text}' for text in texts)]))


def _run_pair(args: argparse.Namespace) -> int:
    source = open_source(
        args.input,
        image_topic=args.image_topic,
        info_topic=args.info_topic,
        decode=decode_options(args),
        camera=_camera(args),
    )
    predictor = make_predictor(args.predictor, noise=resolve_noise(args.noise) if args.noise else None)
    first, second = args.pair
    output = args.output or Path(f'{args.input.resolve().stem}_pair_{first}_{second}.png')
    figures = inspect_pair(source, (first, second), predictor, output)
    if args.json:
        print_json(figures)
    else:
        print(pair_line(figures))
    return 0


def run(args: argparse.Namespace) -> int:
    """Run the command; topics are shown even where no image can be used."""
    if args.pair:
        return _run_pair(args)
    report: dict[str, Any] = {'input': str(args.input)}
    items: list[FrameStatistics] = []
    failure: Dark3rError | None = None
    if is_bag(args.input):
        with BagReader(args.input) as reader:
            report['bag'] = _bag_summary(reader)
    try:
        source = open_source(
            args.input,
            image_topic=args.image_topic,
            info_topic=args.info_topic,
            decode=decode_options(args),
            camera=_camera(args),
        )
        noise = resolve_noise(args.noise) if args.noise else None
        figures, items = _inspect_frames(source, args.samples, noise)
        report |= figures
    except Dark3rError as error:
        failure = error
    sheet = args.output or Path(f'{args.input.resolve().stem}_inspect.png')
    if items and not args.no_sheet:
        _write_sheet(sheet, items)
        report['contact_sheet'] = str(sheet)
    if args.json:
        print_json({**report, 'problem': None if failure is None else str(failure)})
    else:
        print(
            '\n'.join(
                [*(_topic_lines(report['bag']) if 'bag' in report else []), *(_frame_lines(report) if items else [])]
            )
        )
        _print_list('advice', report.get('advice', []))
        _print_list('warnings', report.get('warnings') or report.get('bag', {}).get('warnings', []))
    if 'contact_sheet' in report:
        print(f'contact sheet: {sheet}', file=sys.stderr)
    if failure is not None:
        raise failure
    return 0
