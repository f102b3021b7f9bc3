# SPDX-License-Identifier: Apache-2.0
"""The learned predictor: a two-view network, whatever backend runs it, made to follow the predictor protocol.

A frame is encoded once and its tokens kept in its features; pairs are decoded in batches and matched by reciprocal
descriptors with sub-pixel refinement.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dark3r_ros.config import Config, setting, to_mapping
from dark3r_ros.errors import DataError
from dark3r_ros.matching.reciprocal import (
    DescribedPair,
    Matches,
    linear_to_xy,
    pair_confidence,
    reciprocal_both_ways,
    reciprocal_dense,
)
from dark3r_ros.matching.refine import match_coarse_to_fine, refine_subpixel
from dark3r_ros.model.backend import Backend, TorchBackend
from dark3r_ros.model.network import Grid, ViewPrediction
from dark3r_ros.model.normalise import normalise
from dark3r_ros.model.onnx_backend import OnnxBackend
from dark3r_ros.model.tensorrt_backend import TensorRtBackend
from dark3r_ros.types import Correspondences, Planes

SEARCHES = ('auto', 'dense', 'coarse', 'fast')
# Largest descriptor map that `auto` searches densely: about a second a pair on one core.
_DENSE_LIMIT = 12_000


@dataclass(frozen=True)
class LearnedConfig(Config):
    """Settings of the learned predictor."""

    search: str = setting(
        'auto',
        'How mutual neighbours are found: dense looks at all, coarse pools the maps first, fast walks from a grid; '
        'auto is dense for small maps, else coarse.',
        choices=SEARCHES,
    )
    subsample: int = setting(8, 'Distance of the start points of the fast search.', unit='px', minimum=1, maximum=64)
    pooling: int = setting(4, 'Side of the cells of the coarse search.', unit='px', minimum=2, maximum=16)
    symmetric: bool = setting(False, 'Decode each pair in both orders and merge the matches: twice the time.')
    sub_pixel: bool = setting(True, 'Move matches between the pixels of the descriptor map.')
    min_confidence: float = setting(0.0, 'Matches below this descriptor confidence are dropped.', minimum=0.0)
    max_matches: int = setting(0, 'Keep this many matches of the highest confidence; 0 keeps all.', minimum=0)
    batch_pairs: int = setting(4, 'Pairs decoded at a time.', minimum=1, maximum=256)
    pointmaps: bool = setting(True, 'Give the point maps of both frames with the matches.')


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """Features of one frame.

    Attributes
    ----------
    tokens: (h * w, E) encoder output. grid: rows and columns of tokens.
    size: width and height of the planes. margin: columns left and rows above the planes that padding added.

    """

    tokens: Tensor
    grid: Grid
    size: tuple[int, int]
    margin: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.tokens.nbytes


def pad_to_patches(image: NDArray[np.float32], patch: int) -> tuple[Tensor, tuple[int, int]]:
    """Mirror an image (C, h, w) at its borders up to multiples of the patch size.

    Returns the image (1, C, H, W) and the columns left and rows above that were added. Raises DataError for an image
    smaller than one patch.
    """
    height, width = image.shape[1:]
    if height < patch or width < patch:
        raise DataError(
            f'the planes are {width}x{height}, smaller than one patch of {patch}x{patch} of the network: '
            'use a smaller binning'
        )
    more_x, more_y = -width % patch, -height % patch
    left, top = more_x // 2, more_y // 2
    padding = (left, more_x - left, top, more_y - top)
    return functional.pad(torch.from_numpy(image)[None], padding, mode='reflect'), (left, top)


class NetworkPredictor:
    """Predictor around a network backend.

    Parameters
    ----------
    backend: runs encoder and decoder. config: how matches are found.

    """

    def __init__(self, backend: Backend, config: LearnedConfig | None = None) -> None:
        self.backend = backend
        self.config = config or LearnedConfig()

    @property
    def name(self) -> str:
        """`learned-` and what runs it."""
        return f'learned-{self.backend.name}'

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings."""
        text = json.dumps([self.backend.fingerprint, to_mapping(self.config)])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def encode(self, planes: Planes) -> EncodedFrame:
        """Encode one frame; DataError for planes that are too small, not three or not finite."""
        image, margin = pad_to_patches(
            normalise(planes, self.backend.normalisation).values, self.backend.config.patch_size
        )
        patch = self.backend.config.patch_size
        grid = (image.shape[2] // patch, image.shape[3] // patch)
        return EncodedFrame(self.backend.encode(image)[0], grid, planes.size, margin)

    def match(self, pairs: Sequence[tuple[EncodedFrame, EncodedFrame]]) -> list[Correspondences]:  # type: ignore[override]
        """Match each pair (a, b); pairs whose frames have the same size are decoded together."""
        groups: dict[tuple[Grid, Grid], list[int]] = defaultdict(list)
        for index, (a, b) in enumerate(pairs):
            groups[a.grid, b.grid].append(index)
        results: dict[int, Correspondences] = {}
        for indices in groups.values():
            for start in range(0, len(indices), self.config.batch_pairs):
                batch = indices[start : start + self.config.batch_pairs]
                for index, found in zip(batch, self._match_batch([pairs[i] for i in batch]), strict=True):
                    results[index] = found
        return [results[index] for index in range(len(pairs))]

    def _match_batch(self, pairs: Sequence[tuple[EncodedFrame, EncodedFrame]]) -> list[Correspondences]:
        first, second = pairs[0]
        tokens_a = torch.stack([a.tokens for a, _ in pairs])
        tokens_b = torch.stack([b.tokens for _, b in pairs])
        view_a, view_b = self.backend.decode(tokens_a, tokens_b, first.grid, second.grid)
        described = [_described(view_a, view_b, row) for row in range(len(pairs))]
        decodings = [[one] for one in described]
        if self.config.symmetric:
            other_b, other_a = self.backend.decode(tokens_b, tokens_a, second.grid, first.grid)
            for row, known in enumerate(decodings):
                known.append(_described(other_a, other_b, row))
        results = []
        for row, (a, b) in enumerate(pairs):
            found = self._correspondences(decodings[row], a, b)
            results.append(self._with_pointmaps(found, view_a, view_b, row, a, b) if self.config.pointmaps else found)
        return results

    def _search(self, decodings: list[DescribedPair]) -> tuple[Matches, NDArray[np.float64], NDArray[np.float64]]:
        """Matches on the descriptor maps with confidence (M,) and sub-pixel offsets (M, 2) in map b."""
        config = self.config
        values = max(m.shape[0] * m.shape[1] for m in (decodings[0].map_a, decodings[0].map_b))
        search = config.search if config.search != 'auto' else 'dense' if values <= _DENSE_LIMIT else 'coarse'
        if search == 'fast':
            matches, confidence = reciprocal_both_ways(decodings, config.subsample)
            return matches, confidence, self._offsets(decodings[0], matches)
        parts, offsets, confidences = [], [], []
        for one in decodings:
            if search == 'dense':
                found = reciprocal_dense(one.map_a, one.map_b)
            else:
                found = match_coarse_to_fine(one.map_a, one.map_b, config.pooling)
            parts.append(found)
            offsets.append(self._offsets(one, found))
            confidences.append(pair_confidence(one.confidence_a, one.confidence_b, found.index_a, found.index_b))
        return _merge(parts, confidences, offsets, decodings[0].map_b.shape[0] * decodings[0].map_b.shape[1])

    def _offsets(self, pair: DescribedPair, matches: Matches) -> NDArray[np.float64]:
        if not self.config.sub_pixel:
            return np.zeros((len(matches), 2))
        return refine_subpixel(pair.map_a, pair.map_b, matches)

    def _correspondences(self, decodings: list[DescribedPair], a: EncodedFrame, b: EncodedFrame) -> Correspondences:
        matches, confidence, offsets = self._search(decodings)
        points_a = self._to_planes(linear_to_xy(matches.index_a, decodings[0].map_a.shape[1]), a)
        points_b = self._to_planes(linear_to_xy(matches.index_b, decodings[0].map_b.shape[1]) + offsets, b)
        # What was found in the mirrored margin is no part of the frame.
        keep = _inside(points_a, a.size) & _inside(points_b, b.size) & (confidence >= self.config.min_confidence)
        chosen = np.flatnonzero(keep)
        if 0 < self.config.max_matches < len(chosen):
            best = np.argsort(-confidence[chosen], kind='stable')[: self.config.max_matches]
            chosen = np.sort(chosen[best])
        return Correspondences(points_a[chosen], points_b[chosen], confidence[chosen])

    def _to_planes(self, xy: NDArray[np.float64] | NDArray[np.int64], frame: EncodedFrame) -> NDArray[np.float64]:
        stride = self.backend.config.output_stride
        points: NDArray[np.float64] = (xy.astype(np.float64) + 0.5) * stride - 0.5 - np.array(frame.margin)
        return points

    def _with_pointmaps(
        self,
        found: Correspondences,
        view_a: ViewPrediction,
        view_b: ViewPrediction,
        row: int,
        a: EncodedFrame,
        b: EncodedFrame,
    ) -> Correspondences:
        points_a, confidence_a = self._frame_maps(view_a, row, a)
        points_b, confidence_b = self._frame_maps(view_b, row, b)
        return Correspondences(
            found.points_a,
            found.points_b,
            found.confidence,
            pointmap_a=points_a,
            pointmap_b=points_b,
            pointmap_confidence_a=confidence_a,
            pointmap_confidence_b=confidence_b,
        )

    def _frame_maps(
        self, view: ViewPrediction, row: int, frame: EncodedFrame
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Points (h, w, 3) and confidence (h, w) of one frame at the size of its planes."""
        stacked = torch.cat((view.points[row].permute(2, 0, 1), view.confidence[row][None]))[None]
        stride = self.backend.config.output_stride
        if stride > 1:
            stacked = functional.interpolate(stacked, scale_factor=stride, mode='bilinear', align_corners=False)
        (left, top), (width, height) = frame.margin, frame.size
        cut = stacked[0, :, top : top + height, left : left + width].cpu().numpy()
        return np.ascontiguousarray(cut[:3].transpose(1, 2, 0)), np.ascontiguousarray(cut[3])


def _described(view_a: ViewPrediction, view_b: ViewPrediction, row: int) -> DescribedPair:
    return DescribedPair(
        view_a.descriptors[row],
        view_b.descriptors[row],
        view_a.descriptor_confidence[row],
        view_b.descriptor_confidence[row],
    )


def _merge(
    parts: list[Matches], confidences: list[NDArray[np.float64]], offsets: list[NDArray[np.float64]], count_b: int
) -> tuple[Matches, NDArray[np.float64], NDArray[np.float64]]:
    """Join the matches of several decodings; of a repeated pair the first counts."""
    index_a = np.concatenate([part.index_a for part in parts])
    index_b = np.concatenate([part.index_b for part in parts])
    _, first = np.unique(index_a * count_b + index_b, return_index=True)
    return Matches(index_a[first], index_b[first]), np.concatenate(confidences)[first], np.concatenate(offsets)[first]


def _inside(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(((points > -0.5) & (points < np.array(size) - 0.5)).all(axis=1))


def load_predictor(
    path: str | Path,
    config: LearnedConfig | None = None,
    *,
    device: str = 'auto',
    precision: str = 'auto',
    compile_mode: str = '',
) -> NetworkPredictor:
    """Predictor from what a path holds.

    A weight file is run by PyTorch; a folder of `dark3r export-engine` by TensorRT when it holds engines, else by ONNX
    Runtime, in the precision that it was exported with. DataError when the path is neither.
    """
    path = Path(path)
    backend: Backend
    if not path.is_dir():
        backend = TorchBackend.from_file(path, device, precision, compile_mode)
    elif any(path.glob('*.plan')):
        backend = TensorRtBackend(path)
    else:
        backend = OnnxBackend(path, device)
    return NetworkPredictor(backend, config)
