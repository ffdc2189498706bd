"""DIP-R1: take in the scene, look at what is unsure, then say where everything is.

"DIP-R1: Deep Inspection and Perception with RL Looking Through and Understanding
Complex Scenes", Park et al., 2025, https://arxiv.org/abs/2505.23179. No code is
released.

    act     y_i = thoughts, boxes to look at, boxes found ~ pi_old(. | image, q),
            i = 1..G;  R_i = format + look(y_i among y_1..y_G)
            + w precision + (1 - w) recall
    score   log pi_ref(y_i | image, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    clipped surrogate (0.2, 0.2) + weight k3(l_it, l_ref_it), mean over all
            tokens

What we could read names the three rewards and not their formulas, so these are our
reading. Looking pays where the answers of the group differ: on which of the gold boxes
(`groups.disagreement_look`) or, without gold, on which part of the picture
(`groups.spread_look`). Boxes are matched for the largest total IoU and hit from 0.5 on;
w = 0.5, and 0.3 leans to recall for crowds. The blocks' order, the mean over all tokens
and an anchor are from others' summaries; no number is, so clip and group size are
GRPO's usual ones, and so would be near(reference, weight=0.04).

A group that agrees is paid for looking nowhere, and one that finds nothing agrees: a
policy needs a cold start that finds something, or it learns to look away first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards import groups
from vrl_jax.rewards.boxes import Boxes, weighted_precision_recall, without_ignored
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.combine import Reward
from vrl_jax.rewards.format import blocks_in_order
from vrl_jax.rewards.grounding import Frame, first_size, in_pixels, original, resized
from vrl_jax.rewards.parse import last_tag, read_json
from vrl_jax.rewards.parse_boxes import as_boxes, as_detections
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, Sample

Look = Callable[[Boxes, Boxes, Boxes, Float[Array, " 2"]], Float[Array, " G"]]
"""(answers, looks, gold, (width, height)) -> what each of the G looks earns.

Answers and looks have a leading axis G; all are in pixels of the picture.
"""


def inspected(
    look: Look = groups.disagreement_look,
    *,
    precision_weight: float = 0.5,
    frame: Frame = resized,
    gold_frame: Frame = original,
    most: int = 64,
) -> Reward:
    """The actor's reward: format + look + accuracy, at most 3.

    A response is `<think>...</think><look>[...]</look><answer>[...]</answer>` with
    lists of boxes [x1, y1, x2, y2] in `frame`: by default pixels of the picture as the
    model sees it. The row's answer is such a list in `gold_frame`, of boxes or of
    objects with `bbox_2d`, [] where nothing is to be found. Its column `ignore_boxes`,
    if there is one, lists regions in which answers are neither right nor wrong.

    A list that cannot be read is empty, and items that are no boxes are left out; who
    does not even write a look block has not looked, and gets 0 for it. Of a response's
    lists the first `most` boxes count, and `left_out` says how many do not; a row with
    more is an error.
    """
    accuracy = functools.partial(
        weighted_precision_recall, precision_weight=precision_weight
    )

    @jax.jit
    def paid(
        answers: Boxes,
        looks: Boxes,
        gold: Boxes,
        ignored: Boxes,
        size: Float[Array, " 2"],
    ) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
        counted = jax.vmap(without_ignored, (0, None))(answers, ignored)
        found = jax.vmap(accuracy, (0, None))(counted, gold)
        return look(counted, looks, gold, size), found

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        sample, size = episodes[0].sample, first_size(episodes[0])
        answers, unanswered = _tables(episodes, "answer", most)
        looks, unseen = _tables(episodes, "look", most)
        looked, found = paid(
            in_pixels(answers, frame, size),
            in_pixels(looks, frame, size),
            in_pixels(_gold(sample, most), gold_frame, size),
            in_pixels(_ignored(sample, most), gold_frame, size),
            np.array(original(size), np.float32),
        )
        scores = []
        for number, episode in enumerate(episodes):
            wrote = last_tag(episode.text, "look") is not None
            parts = {
                "format": float(thinks_looks_answers(episode.text)),
                "look": float(looked[number]) if wrote else 0.0,
                "accuracy": float(found[number]),
            }
            left_out = float(unanswered[number] + unseen[number])
            scores.append(
                {"overall": sum(parts.values()), **parts, "left_out": left_out}
            )
        return scores

    return reward


def thinks_looks_answers(text: str) -> bool:
    """A think, a look and an answer block, each once, with only blanks between."""
    return blocks_in_order(text, ("think", "look", "answer"))


def dip_r1(*, group_size: int = 8, clip: float = 0.2, anchor: Anchor = free) -> Recipe:
    """The actor's reward is `inspected()`."""
    return clipped_recipe(
        functools.partial(single_turn, group_size=group_size),
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )


def _tables(
    episodes: Sequence[Episode], name: str, most: int
) -> tuple[Boxes, list[int]]:
    """The boxes of all the last blocks `name`, and how many had no room."""
    lists = [
        as_detections(read_json(last_tag(episode.text, name) or ""))
        for episode in episodes
    ]
    tables = [as_boxes(found[:most], size=most) for found in lists]
    left_out = [max(len(found) - most, 0) for found in lists]
    return jax.tree.map(lambda *x: np.stack(x), *tables), left_out


def _gold(sample: Sample, most: int) -> Boxes:
    return _of_row(sample, "as its answer", read_json(sample.answer), most)


def _ignored(sample: Sample, most: int) -> Boxes:
    """Those of the optional column."""
    if sample.annotations.get("ignore_boxes") is None:
        return as_boxes([], size=most)
    given = column(sample, "ignore_boxes", list, "boxes [x1, y1, x2, y2]")
    return _of_row(sample, "in the column 'ignore_boxes'", given, most)


def _of_row(sample: Sample, where: str, given: Any, most: int) -> Boxes:
    """A list whose items are all boxes; a `ValueError` names the row otherwise."""
    items = given if isinstance(given, list) else None
    boxes = as_detections(items)
    if items is None or len(boxes) != len(items):
        raise ValueError(
            f"{sample.id} needs a list of boxes [x1, y1, x2, y2] {where}, [] for none; "
            f"got {str(given)[:80]!r}."
        )
    if len(boxes) > most:
        raise ValueError(
            f"{sample.id} has {len(boxes)} boxes {where}, and {most} are room for: "
            "raise `most` of the reward, or leave the row out."
        )
    return as_boxes(boxes, size=most)
