# SPDX-License-Identifier: Apache-2.0
"""`dark3r export-engine`: turn a weight file into graphs or engines for the ONNX Runtime and TensorRT backends."""

from __future__ import annotations

import argparse
from pathlib import Path

from dark3r_ros.cli.common import parse_size, print_json
from dark3r_ros.model.export import GRAPH_PRECISIONS, export_folder
from dark3r_ros.model.weights import load_network

NAME = 'export-engine'
HELP = 'export a network for ONNX Runtime or TensorRT'
EXAMPLE = 'dark3r export-engine weights.safetensors -o engine --size 320x240'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument('weights', type=Path, help='.safetensors or .pth file')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write')
    parser.add_argument(
        '--size',
        type=parse_size,
        action='append',
        metavar='WxH',
        help='size of the planes that the network sees, rounded up to whole patches; repeat for several (320x240)',
    )
    parser.add_argument('--format', choices=('onnx', 'tensorrt'), default='onnx', help='what to build (default: onnx)')
    parser.add_argument(
        '--precision', choices=GRAPH_PRECISIONS, default='fp32', help='of the transformer blocks (default: fp32)'
    )
    parser.add_argument('--max-batch', type=int, default=8, help='largest batch of a TensorRT engine (default: 8)')
    parser.add_argument('--json', action='store_true', help='print the files as JSON')


def run(args: argparse.Namespace) -> int:
    """Export, and build engines where asked for."""
    network, weights, _ = load_network(args.weights)
    patch = network.config.patch_size
    sizes = [(-(-width // patch) * patch, -(-height // patch) * patch) for width, height in args.size or [(320, 240)]]
    export_folder(
        network,
        args.output,
        list(dict.fromkeys(sizes)),
        normalisation=weights.normalisation,
        precision=args.precision,
    )
    if args.format == 'tensorrt':
        from dark3r_ros.model.tensorrt_backend import TensorRtBackend

        TensorRtBackend(args.output, args.max_batch).prepare()
    files = sorted(path.name for path in args.output.iterdir() if path.suffix in ('.onnx', '.plan', '.json'))
    if args.json:
        print_json({'folder': str(args.output), 'files': files})
    else:
        print(f'{args.output}: {", ".join(files)}')
    return 0
