"""VisRL: where to look is learnt from which look led to the right answer.

"VisRL: Intention-Driven Visual Perception via Reinforced Reasoning", 2025,
https://arxiv.org/abs/2503.07523; code https://github.com/zhangquanchen/VisRL, which is
followed.

    pairs   three times for each question, at temperature 2: a box on the picture, the
            crop, an answer; another box, which becomes a random one elsewhere if
            IoU > 0.05, its crop and an answer. Judges score all candidates, the answer
            a_j and the crop b_j, in [0, 1]
            chosen    the first with a_j = max(a) >= 0.8 and b_j >= 0.8
            rejected  the first with a_j = min(a) <= 0.2 and b_j <= 0.2
    act     both boxes given the picture, both answers given picture and chosen crop
    score   log pi_ref of all four
    credit  nothing
    loss    0.5 l(m_box) + 0.5 l(m_answer), l(m) = -log sigmoid(0.1 m),
            m = h_chosen - h_rejected, h = sum_t log(pi / pi_ref); mean over questions

`programs.region_pairs.preferences` makes the pairs with the policy as it is, `visrl`
learns from them; in turns, with the policy before each stage, `params`, as the
reference. Stage 0 teaches both turns of `programs.regions` by demonstrations,
sft(functools.partial(recited, program=look_then_answer, rows=2)), stage 1 learns from
boxes alone, visrl(weights=(1.0,), reference=params), stage 2 from both,
visrl(reference=params) with the params of then.

What differs here: the two boxes of an attempt are drawn side by side; sides and places
of a random box are ours, uniform, as is that it shares nothing with the good one. All
boxes of pairs are spelled in one way, so that no box is known by its style, and answers
that the budget cut off, or cannot hold once they are spelled again, are no candidates.
Crops are those of `engine.tools`, small ones grown to 28 pixels. The words of all
prompts are ours. Of several pictures the first is cropped; a pair without a picture has
no crop.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from vrl_jax import preference
from vrl_jax.engine.conversation import Ask
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Steps
from vrl_jax.models.policy import Params
from vrl_jax.programs.recital import recited
from vrl_jax.programs.regions import (
    FIND,
    UNCUT,
    ZOOMED,
    ReadBox,
    asked_closely,
    cut,
    point,
    unit_box,
)
from vrl_jax.rewards.columns import column
from vrl_jax.training.iteration import Recipe
from vrl_jax.training.pair_recipe import pair_recipe
from vrl_jax.types import Sample

Region = Callable[[str, str], str]
"""(the chosen box, the box of an answer's own side) -> the box that it is shown."""

PairLoss = Callable[[Float[Array, " P"], Float[Array, " P"]], Float[Array, " P"]]

CROP = "crop"
"""Annotation of a pair that is learnt: what its answer is shown, if anything."""

STEPS = ("box", "answer")


def chosen_region(chosen_step: str, own_step: str) -> str:
    """The chosen box, whatever came before the answer: as in the code."""
    del own_step
    return chosen_step


def own_region(chosen_step: str, own_step: str) -> str:
    """The box that the answer followed when it was written.

    Answers then have prompts of their own, of which micro-batches must hold pairs.
    """
    del chosen_step
    return own_step


def visrl(
    *,
    weights: Sequence[float] = (0.5, 0.5),
    region: Region = chosen_region,
    reference: Params | None = None,
    pair_loss: PairLoss = preference.dpo,
    find: str = FIND,
    zoomed: str = ZOOMED,
    uncut: str = UNCUT,
    read_box: ReadBox = unit_box,
    limits: Limits | None = None,
) -> Recipe:
    """`weights` of boxes and answers; (1.0,) is stage 1, in which no answer is read.

    Rows are those of `preferences`. `region` says which box an answer is shown:
    `own_region` shows the rejected answer its own crop. `reference` stays what it is,
    as the paper's does for a stage; None takes the policy before each iteration: all
    margins then start at 0 in each, and nothing ties the policy to where it began.
    """
    if len(weights) not in (1, 2):
        raise ValueError(
            f"a pair has a box and perhaps an answer: 1 or 2 weights, got {weights}."
        )
    count = len(weights)

    def both_turns(sample: Sample) -> Steps:
        yield from point(sample, find=find)
        if count > 1:
            crop = sample.annotations[CROP]
            yield Ask((asked_closely(sample, crop, zoomed, uncut),))

    def act(actor, batches, key):
        samples = next(batches)
        twins = [
            twin
            for sample in samples
            for twin in _twins(sample, count, region, read_box)
        ]
        rollout = recited(
            actor,
            iter([twins]),
            key,
            program=both_turns,
            group_size=2,
            rows=count,
            limits=limits,
        )
        rewards = jnp.tile(jnp.array([1.0, 0.0]), len(samples))
        return dataclasses.replace(rollout, rewards=rewards)

    return pair_recipe(
        act,
        pair_loss=lambda chosen, rejected: pair_loss(chosen.gain, rejected.gain),
        reference=reference,
        steps=dict(zip(STEPS, weights, strict=False)),
    )


def _twins(
    sample: Sample, count: int, region: Region, read_box: ReadBox
) -> list[Sample]:
    """The row twice: what is said on the chosen and on the rejected side.

    `ValueError` where it lacks a column, or its region cannot be cut out.
    """
    chosen, rejected = (
        column(sample, name, str, "a box [left, top, right, bottom] from 0 to 1")
        for name in ("chosen_step", "rejected_step")
    )
    if count == 1:
        sides = [(chosen,), (rejected,)]
        return [_saying(sample, said, None) for said in sides]
    answers = [
        column(sample, name, str, f"the {name} answer")
        for name in ("chosen", "rejected")
    ]
    shown = [region(chosen, step) for step in (chosen, rejected)]
    crops = {text: cut(sample, read_box(text)) for text in {*shown}}
    for text, crop in crops.items():
        if sample.images and crop is None:
            raise ValueError(
                f"{sample.id} needs boxes in the columns 'chosen_step' and "
                f"'rejected_step' that can be cut out of its picture; got {text!r}. "
                "read_box says how they are read; leave the row out, or learn from "
                "boxes alone with weights=(1.0,)."
            )
    sides = zip((chosen, rejected), answers, shown, strict=True)
    return [
        _saying(sample, (step, answer), crops[text]) for step, answer, text in sides
    ]


def _saying(sample: Sample, said: Sequence[str], crop: bytes | None) -> Sample:
    annotations = {**sample.annotations, "demonstration": said, CROP: crop}
    return dataclasses.replace(sample, annotations=annotations)
