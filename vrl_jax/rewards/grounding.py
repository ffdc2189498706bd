"""Rewards for boxes and points in pictures, in the frame that was asked for."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vrl_jax import geometry
from vrl_jax.rewards.boxes import Boxes
from vrl_jax.rewards.combine import Reward
from vrl_jax.rewards.parse import read_json
from vrl_jax.rewards.parse_boxes import (
    Detection,
    are_numbers,
    as_boxes,
    as_detections,
    detections,
    first_point,
)
from vrl_jax.types import Episode, ImageSize

Frame = Callable[[ImageSize], tuple[float, float]]
"""The width and height of the frame that coordinates are in."""


def original(size: ImageSize) -> tuple[float, float]:
    """Pixels of the picture as it came: what most annotations are in."""
    return float(size.original_width), float(size.original_height)


def resized(size: ImageSize) -> tuple[float, float]:
    """Pixels of the picture as the model sees it: Qwen2.5-VL."""
    return float(size.width), float(size.height)


def thousandths(size: ImageSize) -> tuple[float, float]:
    """0 to 1000: Qwen2-VL, Qwen3-VL, V-Triune, Visual-RFT."""
    del size
    return 1000.0, 1000.0


def unit(size: ImageSize) -> tuple[float, float]:
    """0 to 1."""
    del size
    return 1.0, 1.0


def box_reward(
    rule: Callable[[Boxes, Boxes], Float[Array, ""]],
    *,
    frame: Frame = original,
    gold_frame: Frame = original,
    most: int = 64,
) -> Reward:
    """rule(boxes of the response, boxes of the answer), such as `boxes.greedy_f1`.

    `frame` is what the response was asked for. Both are converted to pixels of the
    original first picture, in which pixel rules count. The row's answer is JSON: a
    box, boxes, or objects with `bbox_2d` and `label`; one that holds none leaves the
    response unscored. Of more than `most` boxes the first ones count.
    """
    compiled = jax.jit(jax.vmap(rule, (0, None)))

    def reward(episodes: Sequence[Episode]) -> list[float]:
        gold = as_detections(read_json(episodes[0].sample.answer))[:most]
        if not gold:
            return [float("nan")] * len(episodes)
        labels = sorted({item.label for item in gold})
        given = [_table(detections(e.text)[:most], labels, most) for e in episodes]
        predicted = jax.tree.map(lambda *x: np.stack(x), *given)
        size = first_size(episodes[0])
        return compiled(
            in_pixels(predicted, frame, size),
            in_pixels(_table(gold, labels, most), gold_frame, size),
        ).tolist()

    return reward


def click_reward(*, frame: Frame = original, gold_frame: Frame = original) -> Reward:
    """1 where the response's point lies in the box that the row's answer is.

    A box in the response counts as its centre. ScreenSpot's rule,
    https://arxiv.org/abs/2401.10935.
    """

    def reward(episodes: Sequence[Episode]) -> list[float]:
        gold = as_detections(read_json(episodes[0].sample.answer))
        if len(gold) != 1:
            return [float("nan")] * len(episodes)
        box = _converted(np.array(gold[0].box), gold_frame, first_size(episodes[0]))
        inside = geometry.point_in_box(_points(episodes, frame), box)
        return inside.astype(jnp.float32).tolist()

    return reward


def near_click_reward(
    *, frame: Frame = original, gold_frame: Frame = original, within: float = 140.0
) -> Reward:
    """1 where the response's point is less than `within` pixels from the answer's.

    In pixels of the picture as it came. The row's answer is JSON: [x, y], or a box, in
    which the point must lie, and not on its border. GUI-R1,
    https://github.com/ritzz-ai/GUI-R1.
    """

    def reward(episodes: Sequence[Episode]) -> list[float]:
        gold = read_json(episodes[0].sample.answer)
        boxes = as_detections(gold)
        if not are_numbers(gold, 2) and len(boxes) != 1:
            return [float("nan")] * len(episodes)
        given = _points(episodes, frame)
        wanted = np.array(gold if are_numbers(gold, 2) else boxes[0].box, np.float32)
        wanted = _converted(wanted, gold_frame, first_size(episodes[0]))
        if wanted.size == 2:
            near = jnp.linalg.norm(given - wanted, axis=-1) < within
        else:
            near = geometry.point_strictly_in_box(given, wanted)
        return near.astype(jnp.float32).tolist()

    return reward


def _points(episodes: Sequence[Episode], frame: Frame) -> Float[Array, "G 2"]:
    """In pixels of the picture as it came; NaN, which is near nothing, for none."""
    points = [first_point(e.text) or (np.nan, np.nan) for e in episodes]
    return _converted(np.array(points), frame, first_size(episodes[0]))


def _table(found: Sequence[Detection], labels: Sequence[str], most: int) -> Boxes:
    return as_boxes(found, size=most, labels=labels)


def first_size(episode: Episode) -> ImageSize:
    """That of the first picture; a ValueError without one."""
    if not episode.image_sizes:
        raise ValueError(
            f"sample {episode.sample.id} has no picture, and its boxes no frame."
        )
    return episode.image_sizes[0]


def in_pixels(boxes: Boxes, frame: Frame, size: ImageSize) -> Boxes:
    """Boxes in `frame` as boxes in pixels of the picture as it came."""
    return Boxes(
        _converted(boxes.boxes, frame, size),
        boxes.mask,
        boxes.labels,
        boxes.confidences,
    )


def _converted(
    numbers: Float[np.ndarray, "*B K"], frame: Frame, size: ImageSize
) -> Float[Array, "*B K"]:
    return geometry.rescale(
        jnp.asarray(numbers, jnp.float32),
        jnp.array(frame(size)),
        jnp.array(original(size)),
    )
