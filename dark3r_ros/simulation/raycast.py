# SPDX-License-Identifier: Apache-2.0
"""Exact intersection of pinhole rays with boxes, ellipsoids, cylinders and the inside of a room.

Rays have unit depth, so the ray parameter is the depth itself. In the frame of an object a ray's direction is a sum of
a part that depends on the column and one that depends on the row, which costs one operation a component and pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dark3r_ros.simulation.scene import Room, Solids
from dark3r_ros.simulation.views import Hits, Views

_NEAR = 1e-3
_TINY = 1e-9


def object_rays(views: Views, centre: Tensor, rotation: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Camera centres (I, P, 3) and object_from_camera rotations (I, P, 3, 3) in the frames of objects.

    `centre` (I, P, 3) and `rotation` (I, P, 3, 3) world_from_object are float64; the difference is taken there.
    """
    offset = views.world_from_camera[:, None, :3, 3] - centre
    origin = torch.einsum('ipwo,ipw->ipo', rotation, offset)
    matrix = torch.einsum('ipwo,iwc->ipoc', rotation, views.world_from_camera[:, :3, :3])
    return origin.to(dtype), matrix.to(dtype)


def _component(matrix: Tensor, k: int, x: Tensor, y: Tensor) -> Tensor:
    """Component k of the directions (I, H, W), never exactly zero, of matrices (I, 3, 3), columns x and rows y."""
    across = matrix[:, k, 0, None] * x + matrix[:, k, 2, None]
    down = matrix[:, k, 1, None] * y
    direction = across[:, None, :] + down[:, :, None]
    return torch.where(direction.abs() < _TINY, _TINY, direction)


def _slab(origin: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Depths at which rays enter and leave |coordinate| < half; origin and half are (I, 1, 1)."""
    inverse = direction.reciprocal()
    middle = -origin * inverse
    extent = half * inverse.abs()
    return middle - extent, middle + extent


def _round(origin: list[Tensor], direction: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Depths at which rays enter and leave the unit circle or sphere; an empty interval where they pass it.

    The distance is measured at the point nearest to the centre, which keeps precision for far small objects.
    """
    a = sum((d * d for d in direction), torch.zeros_like(direction[0]))
    middle = -sum((o * d for o, d in zip(origin, direction, strict=True)), torch.zeros_like(a)) / a
    nearest = [o + middle * d for o, d in zip(origin, direction, strict=True)]
    clearance = 1.0 - sum((n * n for n in nearest), torch.zeros_like(a))
    extent = torch.where(clearance > 0, (clearance.clamp(min=0) / a).sqrt(), -1.0)
    return middle - extent, middle + extent


def solid_depth(kind: str, origin: Tensor, matrix: Tensor, half: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Depth (I, H, W) of one object per image, infinity where it is missed or the camera is inside.

    origin (I, 3), matrix (I, 3, 3), half (I, 3) in the frame of the object, x (I, W), y (I, H).
    """
    o = [origin[:, k, None, None] for k in range(3)]
    h = [half[:, k, None, None] for k in range(3)]
    d = [_component(matrix, k, x, y) for k in range(3)]
    if kind == 'sphere':
        safe = [v.clamp(min=_TINY) for v in h]
        enter, leave = _round(
            [a / s for a, s in zip(o, safe, strict=True)], [b / s for b, s in zip(d, safe, strict=True)]
        )
    elif kind == 'cylinder':
        safe = [v.clamp(min=_TINY) for v in h[:2]]
        enter, leave = _round(
            [a / s for a, s in zip(o[:2], safe, strict=True)], [b / s for b, s in zip(d[:2], safe, strict=True)]
        )
        top, bottom = _slab(o[2], d[2], h[2])
        enter, leave = torch.maximum(enter, top), torch.minimum(leave, bottom)
    else:
        enter, leave = _slab(o[0], d[0], h[0])
        for k in (1, 2):
            near, far = _slab(o[k], d[k], h[k])
            enter, leave = torch.maximum(enter, near), torch.minimum(leave, far)
    hit = (enter < leave) & (enter > _NEAR) & (h[2] > 0)
    return torch.where(hit, enter, torch.inf)


def _rectangle(views: Views, centre: Tensor, reach: Tensor) -> list[tuple[int, int, int, int] | None]:
    """Rows and columns (y0, y1, x0, x1) of a single image that the bounding spheres of P objects can touch."""
    pose = views.world_from_camera[0]
    seen = (centre - pose[:3, 3]) @ pose[:3, :3]
    fx, fy, cx, cy = views.intrinsics[0].tolist()
    result: list[tuple[int, int, int, int] | None] = []
    for (px, py, pz), r in zip(seen.tolist(), reach.tolist(), strict=True):
        if r <= 0 or pz + r <= _NEAR:
            result.append(None)
            continue
        if pz - r <= 0.01:
            result.append((0, views.height, 0, views.width))
            continue
        bounds = []
        for f, c, p, size in ((fy, cy, py, views.height), (fx, cx, px, views.width)):
            low = min((p - r) / (pz - r), (p - r) / (pz + r)) * f + c
            high = max((p + r) / (pz - r), (p + r) / (pz + r)) * f + c
            bounds += [min(max(int(low), 0), size), max(min(int(high) + 2, size), 0)]
        result.append(None if bounds[0] >= bounds[1] or bounds[2] >= bounds[3] else tuple(bounds))  # type: ignore[arg-type]
    return result


def trace_solids(solids: Solids, views: Views, hits: Hits) -> None:
    """Put the nearest solid into `hits` where it is nearer than what is there; tensors gathered per image."""
    dtype = hits.depth.dtype
    x, y = views.axes(dtype)
    origin, matrix = object_rays(views, solids.centre, solids.rotation, dtype)
    half = solids.half.to(dtype)
    nearest = torch.full(hits.depth.shape, -1, dtype=torch.int32, device=x.device)
    whole = (0, views.height, 0, views.width)
    rectangles: list[tuple[int, int, int, int] | None] = [whole] * len(solids.kind)
    if len(views) == 1 and x.device.type == 'cpu':
        rectangles = _rectangle(views, solids.centre[0], solids.half[0].norm(dim=-1))
    for slot, (kind, rectangle) in enumerate(zip(solids.kind, rectangles, strict=True)):
        if rectangle is None:
            continue
        y0, y1, x0, x1 = rectangle
        depth = solid_depth(kind, origin[:, slot], matrix[:, slot], half[:, slot], x[:, x0:x1], y[:, y0:y1])
        window = hits.depth[:, y0:y1, x0:x1]
        closer = depth < window
        hits.depth[:, y0:y1, x0:x1] = torch.where(closer, depth, window)
        nearest[:, y0:y1, x0:x1].masked_fill_(closer, slot)
    for kind in dict.fromkeys(solids.kind):
        slots = [number for number, name in enumerate(solids.kind) if name == kind]
        _surface(kind, slots[0], slots[-1], nearest, solids, (origin, matrix, half), (x, y), hits)


def _surface(
    kind: str,
    first: int,
    last: int,
    nearest: Tensor,
    solids: Solids,
    frames: tuple[Tensor, Tensor, Tensor],
    axes: tuple[Tensor, Tensor],
    hits: Hits,
) -> None:
    """Normals, surface coordinates and materials of the pixels whose nearest solid is in the slots first..last."""
    image, row, column = torch.nonzero((nearest >= first) & (nearest <= last), as_tuple=True)
    slot = nearest[image, row, column].long()
    origin, matrix, half = (item[image, slot] for item in frames)
    depth = hits.depth[image, row, column]
    ray = torch.stack([axes[0][image, column], axes[1][image, row], torch.ones_like(depth)], dim=1)
    point = origin + depth[:, None] * (matrix @ ray[:, :, None])[:, :, 0]
    ratio = point / half
    if kind == 'box':
        face = ratio.abs().argmax(dim=1)
    elif kind == 'sphere':
        face = point.abs().argmax(dim=1)
    else:
        cap = ratio[:, 2].abs() > torch.hypot(ratio[:, 0], ratio[:, 1])
        face = torch.where(cap, 2, point[:, :2].abs().argmax(dim=1))
    one_hot = torch.nn.functional.one_hot(face, 3).to(point.dtype)
    sign = torch.where((point * one_hot).sum(1) < 0, -1.0, 1.0).to(point.dtype)
    if kind == 'box':
        normal = one_hot * sign[:, None]
    elif kind == 'sphere':
        normal = ratio / half
    else:
        side = torch.stack([ratio[:, 0] / half[:, 0], ratio[:, 1] / half[:, 1], torch.zeros_like(depth)], dim=1)
        normal = torch.where(cap[:, None], one_hot * sign[:, None], side)
    normal = torch.nn.functional.normalize((normal[:, None, :] @ matrix)[:, 0], dim=1)
    # Planar mapping onto the face; the shift tells the faces and the objects apart.
    u = torch.where(face == 0, point[:, 1], point[:, 0])
    v = torch.where(face == 2, point[:, 1], point[:, 2])
    shift = 0.37 * face + 0.19 * sign + 1.7 * solids.shift[image, slot].to(point.dtype)
    hits.normal[image, :, row, column] = normal
    hits.uv[image, :, row, column] = torch.stack([u + shift, v + 0.61 * shift], dim=1)
    hits.material[image, row, column] = solids.material[image, slot]


def trace_room(room: Room, views: Views, hits: Hits) -> None:
    """Fill `hits` with walls, floor and ceiling, seen from inside; tensors gathered per image."""
    dtype = hits.depth.dtype
    x, y = views.axes(dtype)
    identity = torch.eye(3, dtype=torch.float64, device=x.device).expand(len(views), 1, 3, 3)
    origin, matrix = object_rays(views, room.centre[:, None], identity, dtype)
    origin, matrix, half = origin[:, 0], matrix[:, 0], room.half.to(dtype)
    directions = [_component(matrix, k, x, y) for k in range(3)]
    depth, face = torch.full_like(hits.depth, torch.inf), torch.zeros_like(hits.material)
    for k in range(3):
        leave = _slab(origin[:, k, None, None], directions[k], half[:, k, None, None])[1]
        face = torch.where(leave < depth, k, face)
        depth = torch.minimum(depth, leave)
    points = [origin[:, k, None, None] + depth * directions[k] for k in range(3)]
    faces = [(face == k) for k in range(3)]
    signs = [torch.where(directions[k] > 0, -1.0, 1.0).to(dtype) * faces[k] for k in range(3)]
    normal = [
        sum((matrix[:, k, c, None, None] * signs[k] for k in range(3)), torch.zeros_like(depth)) for c in range(3)
    ]
    walls, floor, ceiling = (room.material[:, k, None, None] for k in range(3))
    material = torch.where(faces[2], torch.where(directions[2] < 0, floor, ceiling), walls)
    shift = 2.3 * sum((signs[k] * (k + 1) for k in range(3)), torch.zeros_like(depth))
    hits.depth, hits.material = depth, material
    hits.normal = torch.stack(normal, dim=1)
    hits.uv = torch.stack(
        [torch.where(faces[0], points[1], points[0]) + shift, torch.where(faces[2], points[1], points[2])], dim=1
    )
