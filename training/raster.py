"""A small rasteriser: textured triangles with depth, in perspective, lit from one side."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]


@numba.njit(cache=True, fastmath=True)
def triangles(
    picture: Uint8,
    nearness: Float32,
    corners: Float32,
    uv: Float32,
    light: Float32,
    faces: NDArray[np.uint16],
    skin: Uint8,
) -> None:
    """Draw triangles into picture uint8 (S, S, 4) and nearness float32 (S, S), in place.

    corners: float32 (V, 3): x, y in pixels and 1 / distance. uv: float32 (V, 2), repeats outside
    [0, 1]. light: float32 (V,), 1 leaves the skin's colours. skin: uint8 (h, w, 4); a texel with an
    alpha below one half is a hole.
    """
    size = picture.shape[0]
    rows, cols = skin.shape[0], skin.shape[1]
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = corners[a]
        bx, by, bz = corners[b]
        cx, cy, cz = corners[c]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-6 or az <= 0 or bz <= 0 or cz <= 0:
            continue
        left = max(0, int(np.floor(min(ax, bx, cx))))
        right = min(size - 1, int(np.ceil(max(ax, bx, cx))))
        top = max(0, int(np.floor(min(ay, by, cy))))
        bottom = min(size - 1, int(np.ceil(max(ay, by, cy))))
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                wb = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
                wc = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
                wa = 1 - wb - wc
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                near = wa * az + wb * bz + wc * cz
                if near <= nearness[y, x]:
                    continue
                u = (wa * az * uv[a, 0] + wb * bz * uv[b, 0] + wc * cz * uv[c, 0]) / near
                v = (wa * az * uv[a, 1] + wb * bz * uv[b, 1] + wc * cz * uv[c, 1]) / near
                col = min(int((u - np.floor(u)) * cols), cols - 1)
                row = min(int((v - np.floor(v)) * rows), rows - 1)
                if skin[row, col, 3] < 128:
                    continue
                shade = wa * light[a] + wb * light[b] + wc * light[c]
                nearness[y, x] = near
                for k in range(3):
                    picture[y, x, k] = min(255.0, skin[row, col, k] * shade)
                picture[y, x, 3] = 255
