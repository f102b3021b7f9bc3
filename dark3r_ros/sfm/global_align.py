# SPDX-License-Identifier: Apache-2.0
"""Sparse global alignment: poses, sizes, depths and, where they are free, intrinsics of all views at once.

Written from the description of MASt3R-SfM (Duisterhof et al., 2024). Poses are chained along a tree and centred on the
middle of what a view sees, so that focal length and size turn around the scene; first matched points are brought
together in space, then their reprojections; Adam with a cosine schedule moves everything at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.config import Config, setting
from dark3r_ros.sfm.canonical import BLOCK, CanonicalView
from dark3r_ros.sfm.spanning import Tree, maximum_tree, ward_tree

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class AlignmentConfig(Config):
    """Settings of the sparse global alignment."""

    coarse_steps: int = setting(300, 'Steps that bring matched points together.', minimum=0)
    fine_steps: int = setting(300, 'Steps on reprojection errors.', minimum=0)
    coarse_rate: float = setting(0.07, 'Learning rate at the start of the first stage.', minimum=0.0)
    fine_rate: float = setting(0.01, 'Learning rate at the start of the second stage.', minimum=0.0)
    match_confidence: float = setting(
        5.0, 'Pairs whose best match stays below are tied by their point maps instead.', minimum=0.0
    )
    fallback_weight: float = setting(0.01, 'Weight of the pairs tied by their point maps.', minimum=0.0)
    fix_intrinsics: bool = setting(False, 'Keep focal length and principal point as given.')
    move_centre: bool = setting(True, 'Let the principal point move with the focal length.')
    focal_prior: float = setting(
        0.0, 'Weight of squared relative changes of the focal length from its start; 0 lets it go.', minimum=0.0
    )
    move_depth: bool = setting(True, 'Let the depths of the blocks move in the second stage.')
    shared_intrinsics: bool = setting(False, 'One camera for all views.')
    tree: str = setting('ward', 'Tree along which poses are chained.', choices=('ward', 'maximum'))


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Matched pixels (N, 2) of views first and second, and their confidences (N,)."""

    first: int
    second: int
    pixels_first: Index
    pixels_second: Index
    confidence: Array


@dataclass(frozen=True, eq=False)
class CrossPoints:
    """Points (H, W, 3) of `view` in the frame of `frame`, with confidences (H, W)."""

    view: int
    frame: int
    points: Array
    confidence: Array


@dataclass(frozen=True, eq=False)
class Alignment:
    """Result of one stage.

    Attributes
    ----------
    intrinsics: (n, 3, 3). world_from_camera: (n, 4, 4). depths: per view (blocks,), of the block centres.
    losses: one value a step; the rest is the state that the last one belongs to.

    """

    intrinsics: Array
    world_from_camera: Array
    depths: list[Array]
    losses: Array


@dataclass(frozen=True, eq=False)
class _Side:
    """Matched pixels of a view: (N, 2), blocks (N,), relative depths (N,)."""

    pixels: Tensor
    block: Tensor
    relative: Tensor


@dataclass(eq=False)
class _State:
    """Free parameters, one row a view; rotations are quaternions x, y, z, w."""

    quaternion: Tensor
    translation: Tensor
    log_size: Tensor
    log_focal: Tensor
    centre: Tensor
    core: list[Tensor]


@dataclass(frozen=True, eq=False)
class _Posed:
    """What follows from a state: focal (n,), principal point (n, 2), rotation, centre, scale g, depths of blocks."""

    focal: Tensor
    centre: Tensor
    rotation: Tensor
    position: Tensor
    gauge: Tensor
    size: Tensor
    depths: list[Tensor]


def pair_scores(count: int, matches: Sequence[PairMatches]) -> Array:
    """Number of matches (n, n) of each pair."""
    scores = np.zeros((count, count))
    for pair in matches:
        scores[pair.first, pair.second] = scores[pair.second, pair.first] = len(pair.confidence)
    return scores


def _robust(residual: Tensor, power: float) -> Tensor:
    """Length of residuals (..., k) to a power, shifted so that its slope at zero is one."""
    offset = (1.0 / power) ** (1.0 / (power - 1.0))
    # The square root has no slope at zero; the first states of identical views need one.
    length = residual.square().sum(-1).clamp(min=1e-24).sqrt()
    return (length + offset) ** power - offset**power


def _rotation(quaternion: Tensor) -> Tensor:
    """Rotation matrices (n, 3, 3) of quaternions (n, 4) of any length."""
    x, y, z, w = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quaternion.shape[:-1], 3, 3)


class GlobalAlignment:
    """The problem of one set of views; `run` solves it stage by stage.

    Parameters
    ----------
    views: canonical views. matches: of every pair once. cross: point maps of pairs for the fallback, both directions.
    config: settings. intrinsics: (n, 3, 3) known ones, in pixels of the views, or None to use their own estimates.
    device, dtype: where and how precisely torch computes.

    """

    def __init__(
        self,
        views: Sequence[CanonicalView],
        matches: Sequence[PairMatches],
        cross: Sequence[CrossPoints] = (),
        config: AlignmentConfig | None = None,
        *,
        intrinsics: Array | None = None,
        device: str = 'cpu',
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.config = config or AlignmentConfig()
        self._views, self._matches = list(views), list(matches)
        self._device, self._dtype = torch.device(device), dtype
        scores = pair_scores(len(views), matches)
        blocks = np.array([len(view.core_depth) for view in views], dtype=np.float64)
        self.tree: Tree = ward_tree(scores, blocks) if self.config.tree == 'ward' else maximum_tree(scores)
        self._sizes = self._tensor(np.array([view.size for view in views]))
        self._median = self._tensor([_lower_median(view.core_depth) for view in views])
        focal, centre = self._start_intrinsics(intrinsics)
        self._focal0 = focal
        self._state = _State(
            self._tensor(np.tile([0.0, 0.0, 0.0, 1.0], (len(views), 1))),
            self._tensor(np.zeros((len(views), 3))),
            self._tensor(np.zeros(len(views))),
            self._shared(focal).log(),
            self._shared(centre / self._sizes),
            [self._tensor(view.core_depth) / m for view, m in zip(views, self._median, strict=True)],
        )
        self._sides = [self._side(pair) for pair in self._matches]
        self._weights = [self._tensor(pair.confidence) for pair in self._matches]
        strong = [float(pair.confidence.max(initial=0.0)) > self.config.match_confidence for pair in self._matches]
        self._strong = [number for number, good in enumerate(strong) if good]
        weak = {
            frozenset((pair.first, pair.second)) for pair, good in zip(self._matches, strong, strict=True) if not good
        }
        self._cross = [self._fallback(one) for one in cross if frozenset((one.view, one.frame)) in weak]

    # ------------------------------------------------------------------ set-up

    def _tensor(self, values: object) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float64)).to(self._device, self._dtype)

    def _start_intrinsics(self, intrinsics: Array | None) -> tuple[Tensor, Tensor]:
        """Focal lengths (n,) and principal points (n, 2) in pixels."""
        if intrinsics is None:
            focal, centre = self._tensor([view.focal for view in self._views]), self._sizes / 2
        else:
            known = self._tensor(intrinsics)
            focal, centre = (known[:, 0, 0] + known[:, 1, 1]) / 2, known[:, :2, 2]
        return focal, centre

    def _shared(self, values: Tensor) -> Tensor:
        """Values (n, ...) of the views, or their mean (1, ...) by confidence where all share one camera."""
        if not self.config.shared_intrinsics:
            return values
        weight = self._tensor([view.confidence.mean() for view in self._views])
        return torch.tensordot(weight / weight.sum(), values, dims=1)[None]

    def _side(self, pair: PairMatches) -> tuple[_Side, _Side]:
        sides = []
        for view, pixels in ((pair.first, pair.pixels_first), (pair.second, pair.pixels_second)):
            block, relative = self._views[view].anchors(pixels)
            sides.append(_Side(self._tensor(pixels), torch.from_numpy(block).to(self._device), self._tensor(relative)))
        return sides[0], sides[1]

    def _fallback(self, one: CrossPoints) -> tuple[CrossPoints, _Side, Tensor, Tensor]:
        """All matched pixels of a view with what its partner's frame says of their blocks."""
        parts = [pair.pixels_first for pair in self._matches if pair.first == one.view]
        parts += [pair.pixels_second for pair in self._matches if pair.second == one.view]
        pixels = np.concatenate(parts)
        block, relative = self._views[one.view].anchors(pixels)
        side = _Side(self._tensor(pixels), torch.from_numpy(block).to(self._device), self._tensor(relative))
        points = np.asarray(one.points, dtype=np.float64)[::BLOCK, ::BLOCK].reshape(-1, 3)[block]
        weight = np.asarray(one.confidence, dtype=np.float64)[::BLOCK, ::BLOCK].ravel()[block]
        return one, side, self._tensor(points), self._tensor(weight)

    # ------------------------------------------------------------------ model

    def _posed(self) -> _Posed:
        state = self._state
        diagonal = self._sizes.norm(dim=1)
        focal = state.log_focal.exp().expand(len(self._views))
        focal = torch.minimum(torch.maximum(focal, 0.25 * diagonal), 10.0 * diagonal)
        centre = state.centre.expand(len(self._views), 2) * self._sizes
        size = state.log_size.exp()
        gauge = 1.0 / size.min()
        plane = size * self._median * focal / self._focal0
        rotation, shift = self._chained()
        middle = (self._sizes / 2 - centre) / focal[:, None]
        middle = plane[:, None] * torch.cat([middle, torch.ones_like(middle[:, :1])], dim=1)
        position = gauge * (shift - (rotation @ middle[:, :, None])[:, :, 0])
        depths = [
            gauge * (plane[number] + (core - 1.0) * self._median[number] * size[number])
            for number, core in enumerate(state.core)
        ]
        return _Posed(focal, centre, rotation, position, gauge, size, depths)

    def _chained(self) -> tuple[Tensor, Tensor]:
        """Rotations (n, 3, 3) and translations (n, 3), multiplied along the tree."""
        own = _rotation(self._state.quaternion)
        rotation, shift = list(own.unbind(0)), list(self._state.translation.unbind(0))
        for parent, child in self.tree.edges:
            shift[child] = rotation[parent] @ shift[child] + shift[parent]
            rotation[child] = rotation[parent] @ rotation[child]
        return torch.stack(rotation), torch.stack(shift)

    def _points(self, posed: _Posed, view: int, side: _Side) -> Tensor:
        """World points (N, 3) of pixels of a view."""
        focal = posed.focal[view]
        depth = posed.depths[view][side.block] * (1.0 + (side.relative - 1.0) * self._focal0[view] / focal)
        flat = (side.pixels - posed.centre[view]) / focal
        local = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1) * depth[:, None]
        return local @ posed.rotation[view].T + posed.position[view]

    def _coarse_loss(self) -> Tensor:
        posed = self._posed()
        cost, weight = [], []
        for number in self._strong:
            pair, (first, second) = self._matches[number], self._sides[number]
            residual = self._points(posed, pair.first, first) - self._points(posed, pair.second, second)
            cost.append(self._weights[number] * _robust(residual, 1.5))
            weight.append(self._weights[number])
        return _mean(cost, weight) + self.config.fallback_weight * self._fallback_loss(posed)

    def _fine_loss(self) -> Tensor:
        posed = self._posed()
        cost, weight = [], []
        for number in self._strong:
            pair, (first, second) = self._matches[number], self._sides[number]
            for here, there, seen, source in (
                (pair.first, pair.second, first, second),
                (pair.second, pair.first, second, first),
            ):
                points = self._points(posed, there, source)
                local = (points - posed.position[here]) @ posed.rotation[here]
                flat = local[:, :2] / local[:, 2:].clamp(min=1e-3)
                uv = (flat * posed.focal[here] + posed.centre[here]).clamp(-1000.0, 2000.0)
                cost.append(self._weights[number] * _robust(seen.pixels - uv, 0.5))
                weight.append(self._weights[number])
        loss = _mean(cost, weight) + self.config.fallback_weight * self._fallback_loss(posed)
        if self.config.focal_prior:
            loss = loss + self.config.focal_prior * (posed.focal / self._focal0).log().square().mean()
        return loss

    def _fallback_loss(self, posed: _Posed) -> Tensor:
        cost, weight = [], []
        for one, side, points, confidence in self._cross:
            # The maps keep their own scale, which ties that of the whole.
            target = points @ posed.rotation[one.frame].T + posed.position[one.frame]
            cost.append(confidence * _robust(self._points(posed, one.view, side) - target, 1.1))
            weight.append(confidence)
        return _mean(cost, weight) if cost else posed.gauge.new_zeros(())

    # ------------------------------------------------------------------ solution

    def run(self) -> tuple[Alignment, Alignment]:
        """Results of the first and of the second stage."""
        state, config = self._state, self.config
        poses = [state.quaternion, state.translation, state.log_size]
        coarse = self._stage(poses, self._coarse_loss, config.coarse_steps, config.coarse_rate)
        moving = list(poses)
        if not config.fix_intrinsics:
            moving += [state.log_focal, *([state.centre] if config.move_centre else [])]
        if config.move_depth:
            moving += state.core
        fine = self._stage(moving, self._fine_loss, config.fine_steps, config.fine_rate)
        return coarse, fine

    def _stage(self, moving: list[Tensor], loss_of: object, steps: int, rate: float) -> Alignment:
        for tensor in moving:
            tensor.requires_grad_(True)
        optimiser = torch.optim.Adam(moving, lr=rate, betas=(0.9, 0.9))
        losses = []
        result = self._result([])
        for step in range(steps):
            optimiser.param_groups[0]['lr'] = rate * (1.0 + math.cos(math.pi * step / steps)) / 2.0
            if step == steps - 1:
                result = self._result([])
            optimiser.zero_grad()
            loss = loss_of()  # type: ignore[operator]
            loss.backward()
            losses.append(float(loss.detach()))
            optimiser.step()
            with torch.no_grad():
                self._state.quaternion /= self._state.quaternion.norm(dim=1, keepdim=True)
        for tensor in moving:
            tensor.requires_grad_(False)
        return replace(result, losses=np.array(losses))

    def _result(self, losses: list[float]) -> Alignment:
        with torch.no_grad():
            posed = self._posed()
        count = len(self._views)
        intrinsics = np.tile(np.eye(3), (count, 1, 1))
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = posed.focal.double().cpu().numpy()
        intrinsics[:, :2, 2] = posed.centre.double().cpu().numpy()
        poses = np.tile(np.eye(4), (count, 1, 1))
        poses[:, :3, :3] = posed.rotation.double().cpu().numpy()
        poses[:, :3, 3] = posed.position.double().cpu().numpy()
        return Alignment(intrinsics, poses, [depth.double().cpu().numpy() for depth in posed.depths], np.array(losses))


def _lower_median(values: Array) -> float:
    """The lower of the two middle values."""
    return float(np.sort(values)[(len(values) - 1) // 2])


def _mean(cost: list[Tensor], weight: list[Tensor]) -> Tensor:
    return torch.cat(cost).sum() / torch.cat(weight).sum()
