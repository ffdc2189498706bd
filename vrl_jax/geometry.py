"""Boxes and points: areas, overlaps, frames, and who is matched with whom.

A box is (x1, y1, x2, y2) with x to the right and y down; lists of them are padded and
come with a boolean mask. What is not a box (NaN, infinite, x2 < x1) has area 0 and
overlaps nothing, so every function gives finite numbers.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Box = Float[Array, "*#B 4"]
"""Where two are given, their leading axes broadcast."""


def is_box(boxes: Float[Array, "*B 4"]) -> Bool[Array, "*B"]:
    """Four finite numbers with x1 <= x2 and y1 <= y2."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.isfinite(boxes).all(-1) & (x1 <= x2) & (y1 <= y2)


def area(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """(x2 - x1) (y2 - y1)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return _finite(jnp.where(is_box(boxes), sides[..., 0] * sides[..., 1], 0))


def intersection(a: Box, b: Box) -> Box:
    """The box that both cover; one of no area where they do not meet."""
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    both = (is_box(a) & is_box(b))[..., None]
    return jnp.where(both, jnp.concatenate([low, jnp.maximum(low, high)], -1), 0)


def iou(a: Box, b: Box) -> Float[Array, "*#B"]:
    """|a and b| / |a or b| with continuous coordinates; 0 where both have no area."""
    shared = area(intersection(a, b))
    return _ratio(shared, area(a) + area(b) - shared)


def giou(a: Box, b: Box) -> Float[Array, "*#B"]:
    """iou - (hull - union) / hull, in [-1, 1]; -1 for what is not a box.

    https://arxiv.org/abs/1902.09630.
    """
    both = is_box(a) & is_box(b)
    corners = [jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])]
    hull = area(jnp.concatenate(corners, -1))
    shared = area(intersection(a, b))
    union = area(a) + area(b) - shared
    return jnp.where(both & (hull > 0), iou(a, b) - _ratio(hull - union, hull), -1.0)


def inclusive_pixel_iou(a: Box, b: Box) -> Float[Array, "*#B"]:
    """The intersection over pixel indices x1..x2 - 1, both ends, strictly ordered.

    The rule of VLM-R1, https://github.com/om-ai-lab/VLM-R1: areas are continuous, and
    boxes of the unit square, or a pixel wide, overlap nothing. Use `iou`.
    """
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:]) - 1
    meet = (low < high).all(-1) & is_box(a) & is_box(b)
    sides = jnp.where(meet[..., None], high - low + 1, 0)
    shared = _finite(sides[..., 0] * sides[..., 1])
    return _ratio(shared, area(a) + area(b) - shared)


def pairwise(
    a: Float[Array, "*#B N 4"], b: Float[Array, "*#B M 4"]
) -> tuple[Float[Array, "*#B N 1 4"], Float[Array, "*#B 1 M 4"]]:
    """Every a beside every b, to broadcast: `iou(*pairwise(a, b))` is [N, M]."""
    return a[..., :, None, :], b[..., None, :, :]


def covered(
    boxes: Float[Array, "N 4"], mask: Bool[Array, " N"], xs: Array, ys: Array
) -> Bool[Array, "X Y"]:
    """Which cells (xs[i], xs[i+1]) x (ys[j], ys[j+1]) some box covers whole."""
    mask = mask & is_box(boxes)
    x1, y1, x2, y2 = boxes.T
    columns = (x1[:, None] <= xs[:-1]) & (xs[1:] <= x2[:, None])
    rows = (y1[:, None] <= ys[:-1]) & (ys[1:] <= y2[:, None])
    return (mask[:, None, None] & columns[:, :, None] & rows[:, None, :]).any(0)


def union_areas(
    a: Float[Array, "N 4"],
    a_mask: Bool[Array, " N"],
    b: Float[Array, "M 4"],
    b_mask: Bool[Array, " M"],
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Areas of the union of all a, of all b, and of what both unions share; exact."""
    boxes = jnp.concatenate([a, b])
    kept = jnp.concatenate([a_mask, b_mask]) & is_box(boxes)
    edges = jnp.where(kept[:, None], boxes, 0)
    xs, ys = jnp.sort(edges[:, 0::2].ravel()), jnp.sort(edges[:, 1::2].ravel())
    cells = jnp.diff(xs)[:, None] * jnp.diff(ys)[None]
    in_a, in_b = covered(a, a_mask, xs, ys), covered(b, b_mask, xs, ys)

    def size(chosen: Bool[Array, "X Y"]) -> Float[Array, ""]:
        return _finite(jnp.where(chosen, cells, 0).sum())

    return size(in_a), size(in_b), size(in_a & in_b)


def union_area(boxes: Float[Array, "N 4"], mask: Bool[Array, " N"]) -> Float[Array, ""]:
    """Area of the union of all boxes; exact."""
    return union_areas(boxes, mask, boxes[:0], mask[:0])[0]


def coverage(
    boxes: Float[Array, "N 4"],
    mask: Bool[Array, " N"],
    size: Float[Array, " 2"],
    *,
    cells: int,
) -> Float[Array, "X Y"]:
    """Which share of each cell the union of all boxes covers; exact.

    The cells part a (width, height) picture into cells x cells; x is the first axis.
    """
    kept = mask & is_box(boxes)
    whole = jnp.concatenate([size, size])
    edges = jnp.where(kept[:, None], jnp.clip(boxes, 0, whole) * (cells / whole), 0)
    xs, ys = jnp.sort(edges[:, 0::2].ravel()), jnp.sort(edges[:, 1::2].ravel())
    starts = jnp.arange(cells)

    def lengths(edges: Float[Array, " K"]) -> Float[Array, "K-1 cells"]:
        """What each stretch between two edges has in each cell."""
        high = jnp.minimum(edges[1:, None], starts + 1)
        return jnp.maximum(high - jnp.maximum(edges[:-1, None], starts), 0)

    found = covered(edges, kept, xs, ys).astype(edges.dtype)
    # A matrix unit's shorter floats would not be exact.
    shares = jnp.einsum(
        "xi,xy,yj->ij", lengths(xs), found, lengths(ys), precision="highest"
    )
    return jnp.clip(shares, 0, 1)


def union_iou(
    a: Float[Array, "N 4"],
    a_mask: Bool[Array, " N"],
    b: Float[Array, "M 4"],
    b_mask: Bool[Array, " M"],
) -> Float[Array, ""]:
    """IoU of two unions of boxes: one box split in two counts the same.

    SATORI-R1, https://arxiv.org/abs/2505.19094.
    """
    all_a, all_b, shared = union_areas(a, a_mask, b, b_mask)
    return _ratio(shared, all_a + all_b - shared)


def rescale(
    boxes: Float[Array, "*B K"],
    size: Float[Array, "*#B 2"],
    new_size: Float[Array, "*#B 2"],
) -> Float[Array, "*B K"]:
    """Coordinates of a frame of (width, height) `size` in one of `new_size`.

    For boxes and points: (1, 1) is the unit frame, (1000, 1000) the frame in
    thousandths, and pixels are the picture's own size, original or as the model sees
    it. Nothing guesses a frame from the numbers.
    """
    scale = jnp.asarray(new_size, jnp.float32) / jnp.asarray(size, jnp.float32)
    return boxes * jnp.concatenate([scale] * (boxes.shape[-1] // 2), -1)


def center(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B 2"]:
    """The point in the middle."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def point_in_box(points: Float[Array, "*#B 2"], boxes: Box) -> Bool[Array, "*#B"]:
    """Whether the point lies in the box or on its border."""
    inside = (boxes[..., :2] <= points) & (points <= boxes[..., 2:])
    return inside.all(-1) & is_box(boxes)


def point_strictly_in_box(
    points: Float[Array, "*#B 2"], boxes: Box
) -> Bool[Array, "*#B"]:
    """`point_in_box` without the border: https://github.com/ritzz-ai/GUI-R1."""
    inside = (boxes[..., :2] < points) & (points < boxes[..., 2:])
    return inside.all(-1) & is_box(boxes)


def greedy_match(scores: Float[Array, "N M"]) -> Int[Array, " N"]:
    """The column matched to each row, or -1: the largest score first, then the rest.

    Only positive scores match; of equal ones the first row, then the first column.
    """
    rows, columns = scores.shape

    def take(matched: Int[Array, " N"], _: None) -> tuple[Int[Array, " N"], None]:
        taken = (matched[:, None] == jnp.arange(columns)).any(0)
        free = (matched < 0)[:, None] & ~taken & (scores > 0)
        best = jnp.argmax(jnp.where(free, scores, 0))
        row, column = best // columns, best % columns
        chosen = jnp.where(free[row, column], column, matched[row])
        return matched.at[row].set(chosen), None

    start = jnp.full(rows, -1, jnp.int32)
    if not min(rows, columns):
        return start
    return jax.lax.scan(take, start, None, length=min(rows, columns))[0]


def greedy_match_by_row(scores: Float[Array, "N M"]) -> Int[Array, " N"]:
    """The column matched to each row, or -1: rows in order, each its best free column.

    For rows sorted by confidence. Only positive scores match.
    """
    columns = scores.shape[1]
    if not columns:
        return jnp.full(len(scores), -1, jnp.int32)

    def take(taken: Bool[Array, " M"], row: Float[Array, " M"]) -> tuple[Array, Array]:
        free = jnp.where(taken | ~(row > 0), 0, row)
        best = jnp.argmax(free)
        chosen = jnp.where(free[best] > 0, best, -1).astype(jnp.int32)
        return taken | (jnp.arange(columns) == chosen), chosen

    return jax.lax.scan(take, jnp.zeros(columns, bool), scores)[1]


def hungarian_match(scores: Float[Array, "N M"]) -> Int[Array, " N"]:
    """The column matched to each row, or -1, for the largest total score.

    Only positive scores match, so padding must score 0.
    """
    if not min(scores.shape):
        return jnp.full(len(scores), -1, jnp.int32)
    scores = jnp.where(scores > 0, scores, 0)
    rows, columns = optax.assignment.hungarian_algorithm(-scores)
    matched = jnp.full(len(scores), -1, jnp.int32).at[rows].set(columns)
    found = jnp.take_along_axis(scores, jnp.maximum(matched, 0)[:, None], 1)[:, 0]
    return jnp.where((matched >= 0) & (found > 0), matched, -1)


def matched_scores(
    scores: Float[Array, "N M"], matched: Int[Array, " N"]
) -> Float[Array, " N"]:
    """The score of each row with its column; 0 for rows without."""
    if not scores.shape[1]:
        return jnp.zeros(len(scores), scores.dtype)
    found = jnp.take_along_axis(scores, jnp.maximum(matched, 0)[:, None], 1)[:, 0]
    return jnp.where(matched >= 0, found, 0)


def _finite(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Areas beyond float32 are no areas."""
    return jnp.where(jnp.isfinite(x), x, 0)


def _ratio(
    part: Float[Array, "*#B"], whole: Float[Array, "*#B"]
) -> Float[Array, "*#B"]:
    sound = (whole > 0) & jnp.isfinite(whole)
    return jnp.clip(jnp.where(sound, part / jnp.where(sound, whole, 1), 0), 0, 1)
