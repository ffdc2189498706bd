"""Rewards for boxes and points in pictures, in the frame that was asked for."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vrl_jax import geometry
from vrl_jax.rewards import boxes
from vrl_jax.rewards.average_precision import THRESHOLDS, mean_average_precision
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

    return _of_boxes(
        lambda predicted, gold, labels: compiled(predicted, gold),
        frame=frame,
        gold_frame=gold_frame,
        most=most,
    )


def precision_reward(
    *,
    thresholds: tuple[float, ...] = tuple(THRESHOLDS.tolist()),
    frame: Frame = original,
    gold_frame: Frame = original,
    most: int = 64,
) -> Reward:
    """`mean_average_precision` of the answer's labels; (0.5,) is AP50. VLM-R1's.

    As `box_reward`. There every box counts as sure, here by its own confidence.
    """

    def rule(predicted: Boxes, gold: Boxes, labels: int) -> Float[Array, " G"]:
        # A power of two: few programs, whatever the rows name.
        return _precisions(predicted, gold, thresholds, 1 << (labels - 1).bit_length())

    return _of_boxes(rule, frame=frame, gold_frame=gold_frame, most=most)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _precisions(
    predicted: Boxes, gold: Boxes, thresholds: tuple[float, ...], classes: int
) -> Float[Array, " G"]:
    rule = functools.partial(
        mean_average_precision, thresholds=thresholds, classes=classes
    )
    return jax.vmap(rule, (0, None))(predicted, gold)


def _of_boxes(
    rule: Callable[[Boxes, Boxes, int], Float[Array, " G"]],
    *,
    frame: Frame,
    gold_frame: Frame,
    most: int,
) -> Reward:
    """rule(boxes of the responses, boxes of the answer, how many labels those have)."""

    def reward(episodes: Sequence[Episode]) -> list[float]:
        gold = as_detections(read_json(episodes[0].sample.answer))[:most]
        if not gold:
            return [float("nan")] * len(episodes)
        labels = sorted({item.label for item in gold})
        given = [_table(detections(e.text)[:most], labels, most) for e in episodes]
        predicted = jax.tree.map(lambda *x: np.stack(x), *given)
        size = first_size(episodes[0])
        return rule(
            in_pixels(predicted, frame, size),
            in_pixels(_table(gold, labels, most), gold_frame, size),
            len(labels),
        ).tolist()

    return reward


def scheduled_iou(*, frame: Frame = original, gold_frame: Frame = original) -> Reward:
    """IoU where it reaches `boxes.dynamic_threshold` of the step, else 0; one box.

    V-Triune's schedule, https://arxiv.org/abs/2505.18129; its own detection, of many
    boxes by label, is `recipes.v_triune`.
    """
    overlap = box_reward(boxes.first_iou, frame=frame, gold_frame=gold_frame)

    def reward(episodes: Sequence[Episode]) -> list[float]:
        step, total = episodes[0].step, episodes[0].total_steps
        bound = float(boxes.dynamic_threshold(step, total))
        return [0.0 if iou < bound else iou for iou in overlap(episodes)]

    return reward


def guarded_iou(
    *, frame: Frame = original, gold_frame: Frame = original, share: float = 0.95
) -> Reward:
    """IoU, but 0 for a box with at least `share` of the picture's area.

    Where things fill their pictures, to name the whole of it would pay without a look.
    The share is ours.
    """
    overlap = box_reward(boxes.first_iou, frame=frame, gold_frame=gold_frame)

    def reward(episodes: Sequence[Episode]) -> list[float]:
        width, height = frame(first_size(episodes[0]))
        areas = [_first_area(episode.text) for episode in episodes]
        return [
            iou * (area < share * width * height)  # an unscored row stays unscored
            for iou, area in zip(overlap(episodes), areas, strict=True)
        ]

    return reward


def _first_area(text: str) -> float:
    x1, y1, x2, y2 = next((one.box for one in detections(text)), (0, 0, 0, 0))
    return (x2 - x1) * (y2 - y1)


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


def in_pixels(found: Boxes, frame: Frame, size: ImageSize) -> Boxes:
    """Boxes in `frame` as boxes in pixels of the picture as it came."""
    return Boxes(
        _converted(found.boxes, frame, size),
        found.mask,
        found.labels,
        found.confidences,
    )


def _converted(
    numbers: Float[np.ndarray, "*B K"], frame: Frame, size: ImageSize
) -> Float[Array, "*B K"]:
    return geometry.rescale(
        jnp.asarray(numbers, jnp.float32),
        jnp.array(frame(size)),
        jnp.array(original(size)),
    )
