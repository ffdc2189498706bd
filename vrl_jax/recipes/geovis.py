"""GeoViS: zoom through a large picture to where a small thing is, then give its box.

"GeoViS: Geospatially Rewarded Visual Search for Remote Sensing Visual Grounding", Zhang
et al., 2025, https://arxiv.org/abs/2512.02715. Its repository could not be reached;
rewards, actions and numbers are the paper's as others report them.

    act     y_1..y_G ~ pi_old: up to 5 zooms, each a cell of 3 x 3 or out, and the part
            of the picture that it leads to; then the box, in the part shown last
            R_i = IoU(B, B*) + 0.1 mean_t r_t + format
              r_t   0.1 r_QA + 0.9 r_IoU of the part after zoom t, as the policy says
                    r_QA   share of yes: is the object, with its position, with its
                           relation, in this part?
                    r_IoU  the object's box in the part, with the part's middle half
    score   log pi_ref(y_i), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6), on what the policy wrote in all
            turns
    loss    clipped surrogate (0.2, 0.2) + weight KL(l_it, l_ref_it), mean over all
            tokens

The paper trains with supervision alone, on four atomic tasks, and its r_t guides a tree
search when it is used: `programs.region_tasks.atomic_samples` makes the tasks for
`sft`, `programs.region_search.search_then_ground` is the search, and `grounding_reward`
measures it. The recipe here is our reading of how the same actions and rewards would be
learnt: what pays is the true box, since a policy that always answers with the middle
half would be paid r_IoU for nothing.

Where no public text says, it is our reading too: that yes means that all of the thing
is in the part, and that checks of position and relation name it; that what a query does
not say is not checked; lambda = 1.5 and c = 1; that there is no way out of the whole
picture, and a way out counts as depth; that a simulation scores one new region, and the
search ends with the one of the highest mean return, of equal ones the smallest. The
words of the prompts are ours, and no zoom goes below 28 pixels, the least that is cut
out.

Rows have the columns `gt_box`, in parts of the first picture's sides, and `context`,
the query's object, position and relation: `worlds.scenes.targets` has such rows, and
`programs.region_tasks.with_way` demonstrates their paths. Of several pictures the first
is searched.
"""

import functools
from collections.abc import Callable

import numpy as np

from vrl_jax import advantages, geometry, objectives, reductions
from vrl_jax.engine.conversation import Ask, user
from vrl_jax.engine.desk import Limits, OutOfRoom
from vrl_jax.engine.episode import Outcome, Steps
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.acting import act as play
from vrl_jax.programs.region_search import Worth, placed, region_reward, told_box
from vrl_jax.programs.region_tasks import target
from vrl_jax.programs.region_tree import WHOLE, moved, picture_size
from vrl_jax.programs.regions import Box, ReadBox, cut, unit_box
from vrl_jax.rewards.combine import Reward, fact, per_response, weighted
from vrl_jax.rewards.parse import answer_tag, first_tag
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, Sample, Turn, literal, wording

FIND = """\
{question}

You may look closer first. <zoom>n</zoom> shows one of the 3 x 3 cells of what you \
see, numbered row by row from 1 to 9, and <zoom>out</zoom> shows more around it. Then \
give the box as <answer>[left, top, right, bottom]</answer>, in parts of the width \
and the height, from 0 to 1, of the picture shown last."""

ZOOMED = """\
<image>That is this part. Zoom again, or answer: {question}"""


def zoom_path(
    sample: Sample,
    *,
    worth: Worth = region_reward,
    depth: int = 5,
    factor: float = 1.5,
    find: str = FIND,
    zoomed: str = ZOOMED,
    read_box: ReadBox = unit_box,
) -> Steps:
    """One conversation: up to `depth` zooms, then the box, told as `placed` says.

    A turn without a zoom tag is the answer. The facts: `path`, the mean `worth` of the
    parts zoomed to, 0 without any; `zooms`; `format`, 1 where the answer is a box in
    its tag and no turn before it has one. A zoom that leads nowhere, or is one too
    many, ends the episode, which is counted, and so does a part without room.
    """
    size, region = picture_size(sample), WHOLE
    words = literal(wording(sample.question))
    context = (user(find.format(question=sample.question), sample.images),)
    said: list[Turn] = []
    worths: list[float] = []

    def outcome(found: Box | None = None, ended: str = "") -> Outcome:
        tagged = [answer_tag(turn.text) is not None for turn in said]
        tidy = found is not None and tagged == [False] * len(worths) + [True]
        path = sum(worths) / max(len(worths), 1)
        facts = {"path": path, "zooms": len(worths), "format": int(tidy)}
        if ended:
            facts[f"ended/{ended}"] = 1
        return placed(said, found, region, facts)

    try:
        while True:
            said.append((yield Ask(context)))
            move = first_tag(said[-1].text, "zoom")
            if move is None:
                return outcome(read_box(said[-1].text))
            step = moved(region, move, size, factor=factor)
            crop = None if step is None or len(worths) == depth else cut(sample, step)
            if crop is None:
                return outcome(ended="no such zoom")
            region = step
            worths.append((yield from worth(sample, region)))
            context = (*context, said[-1], user(zoomed.format(question=words), [crop]))
    except OutOfRoom:
        return outcome(ended="part did not fit")


def overlap(episode: Episode) -> float:
    """IoU of the box that the episode came to with the row's; 0 without one."""
    gold, found = target(episode.sample), told_box(episode.turns)
    if found is None:
        return 0.0
    return float(geometry.iou(np.array(found), np.array(gold)))


def reaches(threshold: float) -> Callable[[float], float]:
    """1 for an IoU of the threshold or more; the mean is Pr@threshold."""
    return lambda found: float(found >= threshold)


def grounding_reward(paid: Callable[[float], float] = float) -> Reward:
    """`paid` of the IoU, and what the paper measures: iou, pr50 and pr70.

    For `search_then_ground`. `reaches(0.5)` pays every box that is good enough.
    """

    def measured(episode: Episode) -> dict[str, float]:
        found = overlap(episode)
        return {
            "overall": paid(found),
            "iou": found,
            "pr50": reaches(0.5)(found),
            "pr70": reaches(0.7)(found),
        }

    return per_response(measured)


def geovis_reward(
    paid: Callable[[float], float] = float, *, path: float = 0.1
) -> Reward:
    """`paid` of the IoU + path mean_t r_t + format, after `zoom_path`."""
    return weighted(
        {
            "box": (grounding_reward(paid), 1.0),
            "path": (fact("path"), path),
            "format": (fact("format"), 1.0),
        }
    )


def geovis(
    *,
    group_size: int = 8,
    worth: Worth = region_reward,
    depth: int = 5,
    factor: float = 1.5,
    find: str = FIND,
    zoomed: str = ZOOMED,
    read_box: ReadBox = unit_box,
    anchor: Anchor = free,
    limits: Limits | None = None,
    clip: float = 0.2,
) -> Recipe:
    """The actor's reward is `geovis_reward()`; `worth` is r_t, never trained itself.

    All turns and the parts between them must fit `row_tokens` of the `limits`, their
    pictures its `pictures`: `play/ended/part did not fit` counts what does not, and
    `play/ended/no such zoom` zooms that lead nowhere.
    """
    program = functools.partial(
        zoom_path,
        worth=worth,
        depth=depth,
        factor=factor,
        find=find,
        zoomed=zoomed,
        read_box=read_box,
    )
    act = functools.partial(play, program=program, group_size=group_size, limits=limits)
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.token_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
