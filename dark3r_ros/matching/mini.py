# SPDX-License-Identifier: Apache-2.0
"""The predictor `mini`: coarse descriptors find the place, fine ones the sub-pixel position.

Each frame has one keypoint in every cell of 8x8 pixels, fixed when it is encoded. A keypoint of one frame is looked
for in the other, whose side of the match is wherever the fine descriptors meet: exact to a fraction of a pixel, while
the keypoint side is the same in every pair. Both directions are searched, so that either frame's keypoints are tracked.
The coarse descriptors of a pair can be made in the light of each other (`cross_view`); by default each frame's own are
compared.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dark3r_ros.config import Config, setting, to_mapping
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.matching import windows
from dark3r_ros.matching.windows import (
    cells_there_and_back,
    chance_around,
    middle_of,
    there_and_back,
    values_at,
    window_search,
)
from dark3r_ros.model.compiled import Traced
from dark3r_ros.model.mini import (
    BUNDLED,
    COARSE,
    FINE,
    MiniContext,
    MiniOutput,
    fold_norms,
    load_mini,
    pad_image,
    read_mini_header,
)
from dark3r_ros.model.normalise import normalise
from dark3r_ros.model.patches import FineMaps, patch_similarity
from dark3r_ros.model.predictor import Located
from dark3r_ros.types import Correspondences, Planes


@dataclass(frozen=True)
class MiniMatchConfig(Config):
    """Settings of the predictor `mini`."""

    radius: int = setting(4, 'Half side of the window of the fine search.', unit='half px', minimum=1, maximum=16)
    return_tolerance: float = setting(
        2.0, 'How far the way to the other frame and back may end from its start.', unit='px', minimum=0.0
    )
    min_confidence: float = setting(0.1, 'Matches below this confidence are dropped.', minimum=0.0, maximum=1.0)
    max_matches: int = setting(1000, 'The most confident matches that are kept; 0 keeps all.', minimum=0)
    max_keypoints: int = setting(
        0,
        'Keypoints of each frame, those that are most likely found, that are looked for in the other; 0 takes all. '
        '400 take a fifth off the work of following a camera, but places in a saved map are found less surely.',
        minimum=0,
    )
    cross_view: bool = setting(
        False,
        'Compare frames by the layers that see both of them, where the weights hold such. A pair takes half as long '
        'again, and poses were no better.',
    )


@dataclass(frozen=True, eq=False)
class MiniFeatures:
    """What `mini` remembers of a frame.

    Attributes
    ----------
    coarse: (C, rows, columns) float16 descriptors of cells. fine: (H/2 * W/2, F) float16.
    keypoints: (N,) indices into the fine map.
    sixteenth, eighth: (S, rows/2, columns/2), (E, rows, columns) float16, what cross-view layers start from; empty
        where they are not used.
    reliability: (N,) chance that a match of a keypoint is right.
    shape: rows and columns of the fine map. size: width and height of the planes.

    """

    coarse: Tensor
    fine: Tensor
    keypoints: Tensor
    reliability: Tensor
    sixteenth: Tensor
    eighth: Tensor
    shape: tuple[int, int]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        parts = (self.coarse, self.fine, self.keypoints, self.reliability, self.sixteenth, self.eighth)
        return sum(part.nbytes for part in parts)


_LEAST_RIGHT, _MOST_RIGHT = 0.02, 0.98  # bounds of the chance that a keypoint can be found at all
_REMEMBERED = 400  # pairs whose second order has not been asked for

_MAPS = 8  # frames whose fine maps are at hand in full precision, 4 MB each: a new keyframe and its neighbours

# Coarse descriptors (C, rows, columns), and logits (1, rows, columns) of the chance that the other frame sees a cell.
_Maps = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class _Side:
    """One frame of a pair: cells (rows * columns, C), keypoints (N, C), chance that a keypoint is seen by both (N,)."""

    cells: Tensor
    described: Tensor
    seen: Tensor


@dataclass(frozen=True, eq=False)
class _Found:
    """Keypoints of one frame, where they lie in the other, and how sure that is.

    Attributes
    ----------
    number: (M,) numbers of the keypoints. keypoint: (M,) their indices into the fine map.
    position: (M, 2) in fine pixels. confidence: (M,).

    """

    number: Tensor
    keypoint: Tensor
    position: Tensor
    confidence: Tensor


def is_mini(path: Path) -> bool:
    """Whether a file holds weights of `mini`."""
    if path.suffix != '.safetensors' or not path.is_file():
        return False
    try:
        read_mini_header(path)
    except DataError:
        return False
    return True


class MiniPredictor:
    """Predictor around the bundled network, or around a weight file of `mini`.

    Parameters
    ----------
    weights: safetensors file. config: how matches are found. device: `auto`, `cpu` or `cuda`.

    """

    name = 'mini'

    def __init__(self, weights: Path = BUNDLED, config: MiniMatchConfig | None = None, *, device: str = 'auto') -> None:
        self.config = config or MiniMatchConfig()
        network, self._digest = load_mini(weights)
        chosen = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
        self.device = torch.device(chosen)
        self.network = folded = fold_norms(network).to(self.device)
        self._outputs = Traced(lambda image: _flat(folded(image)))
        self.coarse_factor, self.fine_factor = float(network.coarse_factor), float(network.fine_factor)
        self._related: dict[tuple[int, int], tuple[MiniFeatures, MiniFeatures, Tensor, Tensor]] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings."""
        text = json.dumps([self._digest, to_mapping(self.config)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def with_config(self, config: MiniMatchConfig) -> MiniPredictor:
        """The same network with other settings; features of one are those of the other."""
        if config.cross_view != self.config.cross_view:
            raise ConfigError('features made with and without `cross_view` do not mix: make another predictor')
        other = copy(self)
        other.config, other._related = config, {}
        return other

    @property
    def _sees_both(self) -> bool:
        return self.config.cross_view and self.network.cross_view is not None

    def encode(self, planes: Planes) -> MiniFeatures:
        """Encode one frame; DataError for planes that are too small, not three or not finite."""
        image = pad_image(torch.from_numpy(normalise(planes).values)[None].to(self.device))
        with torch.inference_mode():
            coarse, fine, reliability, sixteenth, eighth = self._outputs(image)
            output = MiniOutput(coarse, fine, reliability, MiniContext(sixteenth, eighth))
            return _features(output, planes.size, keep_context=self._sees_both)

    def match(self, pairs: Sequence[tuple[MiniFeatures, MiniFeatures]]) -> list[Correspondences]:
        """Match each pair; the confidence is the chance that a match is right, as the network judges it."""
        with torch.inference_mode():
            return [self._match_one(a, b) for a, b in pairs]

    def _match_one(self, a: MiniFeatures, b: MiniFeatures) -> Correspondences:
        maps_a, maps_b = self._described(a, b)
        side_a, side_b = _side(*maps_a, a), _side(*maps_b, b)
        forward, backward = self._search(a, b, side_a, side_b), self._search(b, a, side_b, side_a)
        points_a = torch.cat([_pixels(_xy(forward.keypoint, a)), _pixels(backward.position)])
        points_b = torch.cat([_pixels(forward.position), _pixels(_xy(backward.keypoint, b))])
        confidence = torch.cat([forward.confidence, backward.confidence])
        kept = (_inside(points_a, a) & _inside(points_b, b)).nonzero()[:, 0]
        if 0 < self.config.max_matches < len(kept):
            order = confidence[kept].argsort(descending=True, stable=True)
            kept = kept[order[: self.config.max_matches]].sort().values
        anchor_a = torch.cat([forward.number, torch.full_like(backward.number, -1)])
        anchor_b = torch.cat([torch.full_like(forward.number, -1), backward.number])
        return Correspondences(
            points_a[kept].double().cpu().numpy().astype(np.float64),
            points_b[kept].double().cpu().numpy().astype(np.float64),
            confidence[kept].double().cpu().numpy().astype(np.float64),
            anchor_a=anchor_a[kept].cpu().numpy(),
            anchor_b=anchor_b[kept].cpu().numpy(),
        )

    def locate(
        self,
        reference: MiniFeatures,
        pixels: NDArray[np.float64],
        view: MiniFeatures,
        expected: NDArray[np.float64] | None = None,
        reach: float = math.inf,
    ) -> Located:
        """Look for given places of one frame in another: `match` for as many places as are asked for.

        `pixels` (N, 2) of the reference may lie between its keypoints. As in `match`, a place counts where coarse and
        fine descriptors lead back to it. Each frame's own coarse descriptors are compared, always. With `expected`
        (N, 2) pixels of the view each place is looked for in the cells within `reach` pixels of its own (a square),
        there and back, and anywhere without.
        """
        with torch.inference_mode():
            coarse, cells = reference.coarse.float(), view.coarse.float()
            places = torch.from_numpy(pixels).to(self.device, torch.float32)
            around = None if expected is None else torch.from_numpy(expected).to(self.device, torch.float32)
            described = functional.normalize(values_at(coarse, places), dim=1)
            chosen, cell, chance = cells_there_and_back(
                described, places, coarse, cells, around, reach, self.coarse_factor
            )
            # The descriptor looked for is that of the nearest fine pixel: what was rounded off is given back.
            place = (places[chosen] - (FINE - 1) / 2) / FINE
            limit = torch.tensor([reference.shape[1] - 1, reference.shape[0] - 1], device=self.device)
            home = place.round().clamp(min=torch.zeros_like(limit), max=limit)
            found = self._there_and_back(reference, view, home, middle_of(cell, cells.shape[2]), chance)
            kept, position, confidence = found
            found_pixels = _pixels(position + (place - home)[kept])
            inside = _inside(found_pixels, view)
            return Located(
                chosen[kept][inside].cpu().numpy(),
                found_pixels[inside].double().cpu().numpy(),
                confidence[inside].double().cpu().numpy(),
            )

    def coarse_maps(self, a: MiniFeatures, b: MiniFeatures) -> tuple[Tensor, Tensor]:
        """Coarse descriptors (C, rows, columns) of both frames, each in the light of the other where possible.

        Guided matching asks for both orders of a pair, one not long after the other: what the first found is kept for
        the second, at 0.6 MB a pair.
        """
        key = (id(a), id(b))
        known = self._related.get(key[::-1])
        if known is not None and known[0] is b and known[1] is a:
            del self._related[key[::-1]]
            return known[3], known[2]
        with torch.inference_mode():
            (coarse_a, _), (coarse_b, _) = self._described(a, b)
        if self._sees_both:
            self._related[key] = (a, b, coarse_a, coarse_b)
            while len(self._related) > _REMEMBERED:
                del self._related[next(iter(self._related))]
        return coarse_a, coarse_b

    def _described(self, a: MiniFeatures, b: MiniFeatures) -> tuple[_Maps, _Maps]:
        """Maps of both frames, each in the light of the other where that is asked for."""
        if not self._sees_both:
            return (a.coarse.float(), None), (b.coarse.float(), None)
        contexts = (MiniContext(f.sixteenth[None].float(), f.eighth[None].float()) for f in (a, b))
        found_a, found_b = self.network.relate(*contexts)
        return (found_a.coarse[0], found_a.seen), (found_b.coarse[0], found_b.seen)

    def _search(self, a: MiniFeatures, b: MiniFeatures, side_a: _Side, side_b: _Side) -> _Found:
        """Find the keypoints of a in b, and keep those that lead back to themselves."""
        if not len(a.keypoints) or not len(side_b.cells):
            nothing = torch.zeros(0, device=self.device)
            return _Found(nothing.long(), nothing.long(), nothing.reshape(0, 2), nothing)
        columns = b.shape[1] * FINE // COARSE
        similarity = side_a.described @ side_b.cells.T
        cell = _argmax(similarity, 1)
        coarse_back = _argmax(similarity, 0)[cell]
        distance = (_xy(a.keypoints[coarse_back], a) - _xy(a.keypoints, a)).abs().amax(1) * FINE
        # What can no longer reach the least confidence is left out before the costly parts.
        trusted = a.reliability.float() * side_a.seen
        chosen = ((distance <= 2 * COARSE) & (trusted >= self.config.min_confidence)).nonzero()[:, 0]
        if 0 < self.config.max_keypoints < len(chosen):
            order = trusted[chosen].argsort(descending=True, stable=True)
            chosen = chosen[order[: self.config.max_keypoints].sort().values]
        keypoint, cell = a.keypoints[chosen], cell[chosen]
        likely = chance_around(functional.softmax(self.coarse_factor * similarity[chosen], dim=1), cell, columns)
        expected = trusted[chosen] * likely
        kept, position, confidence = self._there_and_back(a, b, _xy(keypoint, a), middle_of(cell, columns), expected)
        return _Found(chosen[kept], keypoint[kept], position, confidence)

    def _there_and_back(
        self, a: MiniFeatures, b: MiniFeatures, home: Tensor, start: Tensor, expected: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Look for whole fine pixels (M, 2) of a around starts (M, 2) in b, and from there for the way back.

        `expected` (M,) is the chance that the start is right. Returns which ones came back (K,), their places in b
        (K, 2), in fine pixels, and how sure these are (K,).
        """
        config = self.config
        search = window_search(config.radius, self.fine_factor, self.device)
        maps_a, maps_b = _fine_maps(a).bordered(config.radius), _fine_maps(b).bordered(config.radius)
        floor, tolerance = config.min_confidence, config.return_tolerance
        return there_and_back(maps_a, home, _extent(a), maps_b, start, _extent(b), expected, search, floor, tolerance)


def best_in_window(
    a: MiniFeatures, home: Tensor, b: MiniFeatures, centre: Tensor, radius: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Look for places of one frame in windows of another, by the patches of fine descriptors around them.

    Parameters
    ----------
    a, b: the frames. home: (M, 2) int64 fine pixels of a. centre: (M, 2) int64 middles of the windows in b.
    radius: half side of a window in fine pixels. factor: of similarities before the softmax.

    Returns the place (M, 2), in fine pixels, at the top of the paraboloid through the 3x3 around the best, and the
    chance of those nine (M,). An expectation over them would be drawn to whole fine pixels where the choice is clear.
    The chance is zero at the edge of the picture: what lies beyond it is found there, too, which draws places inwards.

    """
    search = window_search(radius, factor, centre.device)
    maps_a, maps_b = _fine_maps(a).bordered(radius), _fine_maps(b).bordered(radius)
    return windows.best_in_window(maps_a, home, maps_b, centre, _extent(b), search)


def likelihoods(
    a: MiniFeatures, number: Tensor, b: MiniFeatures, centre: Tensor, radius: int, factor: float
) -> tuple[Tensor, Tensor]:
    """How likely keypoints of one frame lie at the places of windows in another, by the patches around them.

    Parameters
    ----------
    number: (M,) of keypoints of a. centre: (M, 2) whole fine pixels, middles of the windows in b.
    radius: half side of a window in fine pixels. factor: of similarities before the softmax.

    Returns the logarithm (M, n, n) of the likelihood over that of a place picked blindly, n = 2 radius + 1, rows first,
    and the same (M,) for places outside: what is left where the keypoint is hidden or misread.

    """
    home = _xy(a.keypoints[number], a).long()
    similarity = patch_similarity(
        _fine_maps(a), home, _fine_maps(b), centre.long(), torch.zeros_like(home[:, 0]), radius
    )
    chance = functional.softmax(factor * similarity, dim=1) * similarity.shape[1]
    right = a.reliability[number].float().clamp(_LEAST_RIGHT, _MOST_RIGHT)[:, None]
    mixed = (right * chance + 1.0 - right).log()
    return mixed.unflatten(1, (2 * radius + 1, -1)), (1.0 - right[:, 0]).log()


@lru_cache(maxsize=_MAPS)
def _fine_maps(features: MiniFeatures) -> FineMaps:
    return FineMaps(features.fine.float(), *features.shape)


def _extent(features: MiniFeatures) -> tuple[int, int]:
    """Width and height of a picture in fine pixels, without its padding."""
    return (features.size[0] + FINE - 1) // FINE, (features.size[1] + FINE - 1) // FINE


def _argmax(values: Tensor, axis: int) -> Tensor:
    """Where the largest value of a matrix lies along an axis; on the CPU as numpy finds it, which is faster."""
    if values.device.type != 'cpu':
        return values.argmax(axis)
    return torch.from_numpy(values.numpy().argmax(axis))


def _flat(output: MiniOutput) -> tuple[Tensor, ...]:
    """All tensors of an output with its context."""
    assert output.context is not None
    return output.coarse, output.fine, output.reliability, output.context.sixteenth, output.context.eighth


def _features(output: MiniOutput, size: tuple[int, int], *, keep_context: bool) -> MiniFeatures:
    """Features from the output for one image: the most reliable fine pixel of each cell is its keypoint."""
    coarse, fine, reliability = output.coarse[0], output.fine[0], output.reliability[0]
    rows, columns = coarse.shape[1:]
    height, width = reliability.shape
    ratio = COARSE // FINE
    y = torch.arange(height, device=fine.device)[:, None] * FINE + (FINE - 1) / 2
    x = torch.arange(width, device=fine.device)[None, :] * FINE + (FINE - 1) / 2
    # Pixels of the padding take no part.
    usable = torch.where((x < size[0]) & (y < size[1]), reliability, -torch.inf)
    blocks = usable.reshape(rows, ratio, columns, ratio).permute(0, 2, 1, 3).reshape(rows * columns, -1)
    value, inner = blocks.max(1)
    cell = torch.arange(rows * columns, device=fine.device)
    keypoint = (cell // columns * ratio + inner // ratio) * width + cell % columns * ratio + inner % ratio
    kept = value.isfinite()
    nothing = torch.zeros(0, dtype=torch.float16, device=fine.device)
    context = output.context if keep_context else None
    return MiniFeatures(
        coarse.half().contiguous(),
        fine.flatten(1).T.half().contiguous(),
        keypoint[kept],
        value[kept].sigmoid().half(),
        nothing if context is None else context.sixteenth[0].half(),
        nothing if context is None else context.eighth[0].half(),
        (height, width),
        size,
    )


def _inside(pixels: Tensor, features: MiniFeatures) -> Tensor:
    """Which pixels (N, 2) lie in the picture."""
    limit = torch.tensor(features.size, device=pixels.device) - 0.5
    return ((pixels > -0.5) & (pixels < limit)).all(1)


def _side(coarse: Tensor, seen: Tensor | None, features: MiniFeatures) -> _Side:
    """What a pair knows of a frame, from maps (C, rows, columns) and, as logits, (1, rows, columns)."""
    places = _pixels(_xy(features.keypoints, features))
    described = functional.normalize(values_at(coarse, places), dim=1)
    chance = torch.ones_like(described[:, 0]) if seen is None else values_at(seen, places)[:, 0].sigmoid()
    return _Side(coarse.flatten(1).T.contiguous(), described, chance)


def _xy(index: Tensor, features: MiniFeatures) -> Tensor:
    """Positions (M, 2) in fine pixels of indices into the fine map."""
    return torch.stack([index % features.shape[1], index // features.shape[1]], dim=1).float()


def _pixels(fine: Tensor) -> Tensor:
    """Fine pixels to pixels of the planes."""
    return fine * FINE + (FINE - 1) / 2
