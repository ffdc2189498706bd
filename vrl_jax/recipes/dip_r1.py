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
(`groups.disagreement_look`) or, where a row has none, on which part of the picture
(`inspected(look_without_gold=groups.spread_look)`). Who writes no answer that can be
read differs from nobody: a torn response is no doubt about the picture. Boxes are
matched for the largest total IoU and hit from 0.5 on; w = 0.5, and 0.3 leans to recall
for crowds. The blocks' order, the mean over all tokens and an anchor are from others'
summaries; no number is, so clip and group size are GRPO's usual ones, and so would be
near(reference, weight=0.04).

A group that agrees is paid for looking nowhere, and one that finds nothing agrees: a
policy needs a cold start that finds something, or it learns to look away first. An
answer `[]` is an answer: one among others that find things makes each of these worth
about the same look. Without gold nothing is paid for being right, and answers that
differ pay: mix such rows with rows that have gold.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards import groups
from vrl_jax.rewards.boxes import Boxes, weighted_precision_recall, without_ignored
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.combine import Reward
from vrl_jax.rewards.format import blocks_in_order
from vrl_jax.rewards.grounding import Frame, first_size, in_pixels, original, resized
from vrl_jax.rewards.parse import json_text, last_tag, read_json
from vrl_jax.rewards.parse_boxes import as_boxes, as_detections
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, Sample

Look = Callable[
    [Boxes, Boxes, Boxes, Float[Array, " 2"], Bool[Array, " G"]], Float[Array, " G"]
]
"""(answers, looks, gold, (width, height), answered) -> what each of the G looks earns.

Answers and looks have a leading axis G; all are in pixels of the picture. `answered` is
False where a response has no answer, and its row of answers no meaning.
"""


def inspected(
    look: Look = groups.disagreement_look,
    *,
    look_without_gold: Look | None = None,
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

    A row whose answer is blank has no gold: accuracy does not apply and is left out,
    and `look_without_gold`, such as `groups.spread_look`, pays the look; without that
    such a row is an error. `read_samples` counts "" as missing, and keeps " ".

    Items that are no boxes are left out. A block that then holds no box, and is not [],
    says nothing, as one that is missing: it gets 0, as a look and as an answer, also
    where nothing is to be found; the format does not mind. Of a response's lists the
    first `most` boxes count, and `left_out` says how many do not; a row with more is an
    error.
    """
    nothing = as_boxes([], size=most)
    accuracy = functools.partial(
        weighted_precision_recall, precision_weight=precision_weight
    )

    @functools.partial(jax.jit, static_argnames="rule")
    def paid(
        rule: Look,
        answers: Boxes,
        looks: Boxes,
        gold: Boxes,
        ignored: Boxes,
        size: Float[Array, " 2"],
        answered: Bool[Array, " G"],
    ) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
        counted = jax.vmap(without_ignored, (0, None))(answers, ignored)
        found = jax.vmap(accuracy, (0, None))(counted, gold)
        looked = rule(counted, looks, gold, size, answered)
        return looked, jnp.where(answered, found, 0)

    def reward(episodes: Sequence[Episode]) -> list[dict[str, float]]:
        sample, size = episodes[0].sample, first_size(episodes[0])
        if look_without_gold is None or sample.answer.strip():
            rule, gold = look, _gold(sample, most)
        else:
            rule, gold = look_without_gold, None
        answers, answered, uncounted = _tables(episodes, "answer", most)
        looks, wrote, unseen = _tables(episodes, "look", most)
        looked, found = paid(
            rule,
            in_pixels(answers, frame, size),
            in_pixels(looks, frame, size),
            in_pixels(nothing if gold is None else gold, gold_frame, size),
            in_pixels(_ignored(sample, most), gold_frame, size),
            np.array(original(size), np.float32),
            answered,
        )
        scores = []
        for number, episode in enumerate(episodes):
            parts = {
                "format": float(thinks_looks_answers(episode.text)),
                "look": float(looked[number]) if wrote[number] else 0.0,
            }
            if gold is not None:
                parts["accuracy"] = float(found[number])
            left_out = float(uncounted[number] + unseen[number])
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
) -> tuple[Boxes, Bool[np.ndarray, " G"], list[int]]:
    """The boxes of all the last blocks `name`, which say something, how many too many.

    What holds no box says something if it is [], bare or in a fence.
    """
    blocks = [last_tag(episode.text, name) or "" for episode in episodes]
    given = [read_json(json_text(block)) for block in blocks]
    lists = [as_detections(found) for found in given]
    said = np.array([bool(b) or g == [] for b, g in zip(lists, given, strict=True)])
    tables = [as_boxes(found[:most], size=most) for found in lists]
    left_out = [max(len(found) - most, 0) for found in lists]
    return jax.tree.map(lambda *x: np.stack(x), *tables), said, left_out


def _gold(sample: Sample, most: int) -> Boxes:
    if not sample.answer.strip():
        raise ValueError(
            f"{sample.id} needs a list of boxes [x1, y1, x2, y2] as its answer, [] for "
            "none, and it is blank: where nobody knows them, give the reward "
            "`look_without_gold`, such as groups.spread_look."
        )
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
