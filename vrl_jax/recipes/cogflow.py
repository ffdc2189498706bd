"""CogFlow: see the diagram well enough before reasoning about it (VGPO).

"CogFlow: Bridging Perception and Reasoning through Knowledge Internalization for Visual
Mathematical Problem Solving", Chen et al., 2026, https://arxiv.org/abs/2601.01874. No
repository is named; a public reward file differs, see `released_reward`.

    act     y_1..y_G ~ pi_old: <watching>, what is drawn, again until S_vis >= tau, up
            to 3 times, else the best of them; going on from it, <thinking>, <answer>
            R_i = 0.6 S_VPR + 0.4 S_VSR + internalisation + accuracy + format
              S_VPR     primitives against the row's, matched by their parameters
              S_VSR     (1 + cos)/2 of embeddings: they, drawn, against the picture
              S_vis     S_VPR + S_VSR of an attempt
    score   log pi_ref(y_i), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6), on the watching that was taken and
            on what follows it; the other attempts are not trained
    loss    clipped surrogate (0.2, 0.2) + weight KL(l_it, l_ref_it), mean over each
            response, then over responses

The paper's anchor is near(reference, weight=0.001), the reference its SFT model. Each
response of a group has a gate of its own, as its formulas are indexed. An attempt and
what follows are one turn, and one row: the trajectory that the paper names. That
rejected attempts are not trained and the mean over responses are our reading; so is
`primitive_score`, in its docstring.

S_VPR has two forms. `geometry_seen` is the paper's algorithm and the default: what is
left out beside a pair of its kind costs nothing there, so that one sure primitive of
each kind earns more than all of them with small errors. To train with, take
`complete_geometry_seen`, in the gate and as the reward's `geometry`: it asks for all of
them, as the F1 of the public file does.

The paper gives no tau, so it is asked for: S_vis is in [0, 2]. A block in which nothing
can be read has S_VPR = S_VSR = 0, our reading: by the penalty alone its S_VPR would be
exp(-1) = 0.37, more than of an honest guess whose mean cost is above 1. Two line
drawings look alike whatever they show, so see first what S_VSR a wrong one has: what
passes has S_VPR >= tau - S_VSR, a mean cost of -log(tau - S_VSR) at most. Where that
S_VSR is 0.9, sensible are tau from 1.3 (mean cost 0.92) to 1.75 (0.16); up to 0.9
whatever is drawn passes.

A column `watching` has the row's primitives in the words of `rewards.primitives`, and
the question asks for the three blocks: `worlds.diagrams` has such rows. The blocks are
taught first, by `recited` of `programs.recital` with the program `watched_first`, whose
gate must accept each demonstration at once: gate=lambda *_: tau. Where no primitives
are known, as in the paper's evaluation, the gate looks by `look_alike` alone, from 0 to
1. The model that scores internalisation learns from one good solution against several
bad ones, by `preference.softmax_dpo`.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.desk import Limits
from vrl_jax.engine.episode import Steps
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.engine.tools import as_png
from vrl_jax.programs.acting import act as play
from vrl_jax.programs.resample import gated_opening
from vrl_jax.programs.search import Value
from vrl_jax.rewards.answers import exact
from vrl_jax.rewards.columns import column
from vrl_jax.rewards.combine import (
    Reward,
    as_parts,
    of_text,
    per_response,
    weighted,
)
from vrl_jax.rewards.format import blocks_in_order
from vrl_jax.rewards.parse import answer_tag, first_tag
from vrl_jax.rewards.primitives import (
    MOST,
    Primitives,
    complete_primitive_score,
    draw,
    primitive_score,
    read_primitives,
    segment_f1,
)
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, ImageRef, Sample

CLOSED = "</watching>"

Embed = Callable[[ImageRef], Float[Array, " D"]]
"""A frozen encoder of pictures, on the host or on a device; the paper's is FG-CLIP."""

Look = Callable[[Sample, str], float]
"""How well what a text has in its watching block shows the row's picture."""


def geometry_seen(
    sample: Sample, text: str, *, missed: float = 1.0, extra: float = 1.0
) -> float:
    """S_VPR, `primitive_score` against the row's; 0 where nothing is watched."""
    gold = reference(sample)
    return primitive_score(watched(text), gold, missed=missed, extra=extra)


def complete_geometry_seen(
    sample: Sample, text: str, *, missed: float = 1.0, extra: float = 1.0
) -> float:
    """S_VPR by `complete_primitive_score`, which asks for all that the row has.

    A guess further off than `missed` is better left out: early in training, where most
    are, raise it.
    """
    gold = reference(sample)
    return complete_primitive_score(watched(text), gold, missed=missed, extra=extra)


def segments_seen(sample: Sample, text: str) -> float:
    """`segment_f1` against the row's lines; 0 where nothing is watched."""
    gold, seen = reference(sample), watched(text)
    return segment_f1(seen, gold) if seen.count else 0.0


def look_alike(embed: Embed, *, pixels: int = 336) -> Look:
    """S_VSR; 0 where nothing is watched, and where the row has no picture.

    Of several pictures it is the first. The drawing is `pixels` wide and high.
    """

    @functools.lru_cache(maxsize=256)  # a group looks at one picture
    def given(picture: ImageRef) -> Float[np.ndarray, " D"]:
        return np.asarray(embed(picture), np.float64)

    @functools.lru_cache(maxsize=4096)  # the reward looks at what the gate looked at
    def drawn(seen: Primitives) -> Float[np.ndarray, " D"]:
        return np.asarray(embed(as_png(draw(seen, pixels=pixels))), np.float64)

    def look(sample: Sample, text: str) -> float:
        seen = watched(text)
        if not seen.count or not sample.images:
            return 0.0
        alike = _cosine(drawn(seen._replace(unread=0)), given(sample.images[0]))
        return (1 + alike) / 2

    return look


def _cosine(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
    """0 where one of them has no length."""
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else 0.0


def watched(text: str) -> Primitives:
    """The primitives of the first watching block; none without one."""
    return read_primitives(first_tag(text, "watching") or "")


def reference(sample: Sample) -> Primitives:
    """The row's primitives; a ValueError where there are none, or some are unread."""
    given = column(sample, "watching", str, "what is drawn, a primitive a line")
    found = read_primitives(given)
    if found.unread or not found.count:
        raise ValueError(
            f"{sample.id} needs the column 'watching', a primitive a line as in "
            f"rewards.primitives, up to {MOST} of a kind and {MOST} points of a line; "
            f"{found.unread} lines could not be read of {given!r}."
        )
    return found


def visual_score(*looks: Look) -> Value:
    """S_vis: the sum of such as `geometry_seen` and a `look_alike`, of an attempt."""
    return lambda sample, turn: sum(look(sample, turn.text) for look in looks)


def watched_first(
    sample: Sample,
    *,
    gate: Value,
    tau: float,
    tries: int = 3,
    watching_tokens: int | None = None,
) -> Steps:
    """`gated_opening` up to the end of the watching block.

    A demonstration of it is two texts: the block, and what follows it.
    """
    return gated_opening(
        sample,
        value=gate,
        threshold=tau,
        closing=CLOSED,
        tries=tries,
        opening_tokens=watching_tokens,
    )


def answered(episode: Episode) -> float:
    """1 where the last answer block is the row's answer, up to white space."""
    return float(exact(answer_tag(episode.text), episode.sample.answer))


same_answer = per_response(answered)
"""The accuracy of both rewards, unless another is given."""


def laid_out(text: str) -> bool:
    """A watching, a thinking and an answer block, in this order and nothing else."""
    return blocks_in_order(text, ("watching", "thinking", "answer"))


def cogflow_reward(
    *,
    look: Look,
    internalised: Reward,
    geometry: Look = geometry_seen,
    accuracy: Reward = same_answer,
    alpha: float = 0.6,
) -> Reward:
    """alpha S_VPR + (1 - alpha) S_VSR + internalisation + accuracy + format, at most 4.

    `look` is a `look_alike`; as `geometry` we recommend `complete_geometry_seen`.
    `internalised` gives in [0, 1] how faithful the steps are to what was seen: a
    trained judge's scores, brought together by such as `rewards.steps.mean_step`. The
    part `synergy_unread` counts lines of the block that are no primitives, which cost
    nothing.
    """

    def synergy(episode: Episode) -> dict[str, float]:
        sample, text = episode.sample, episode.text
        vpr, vsr = geometry(sample, text), look(sample, text)
        overall = alpha * vpr + (1 - alpha) * vsr
        return {
            "overall": overall,
            "vpr": vpr,
            "vsr": vsr,
            "unread": float(watched(text).unread),
        }

    return weighted(
        {
            "synergy": (per_response(synergy), 1.0),
            "internalisation": (internalised, 1.0),
            "accuracy": (accuracy, 1.0),
            "format": (of_text(laid_out), 1.0),
        }
    )


def released_reward(
    *,
    look: Look,
    internalised: Reward,
    geometry: Look = segments_seen,
    accuracy: Reward = same_answer,
) -> Reward:
    """The mean of S_VSR, F1 of lines, accuracy, format and internalisation, at most 1.

    It follows a public reward file that looks like this method's, although its
    repository is not known. What was seen pays only where the format is right; the
    judge's logit is cut to [0, 1].
    """

    def if_laid_out(rule: Look) -> Reward:
        return per_response(
            lambda episode: (
                rule(episode.sample, episode.text) if laid_out(episode.text) else 0.0
            )
        )

    def cut(episodes: Sequence[Episode]) -> list[float]:
        found = [as_parts(score)["overall"] for score in internalised(episodes)]
        return np.clip(found, 0, 1).tolist()  # NaN, which is unscored, stays

    parts = {
        "vsr": if_laid_out(look),
        "vpr": if_laid_out(geometry),
        "accuracy": accuracy,
        "format": of_text(laid_out),
        "internalisation": cut,
    }
    return weighted({name: (part, 1 / len(parts)) for name, part in parts.items()})


def cogflow(
    *,
    gate: Value,
    tau: float,
    tries: int = 3,
    watching_tokens: int | None = None,
    group_size: int = 8,
    anchor: Anchor = free,
    limits: Limits | None = None,
    clip: float = 0.2,
) -> Recipe:
    """`gate` is visual_score(geometry_seen, look_alike(embed)), or another score.

    We recommend `complete_geometry_seen` in it, and in the reward; the text above says
    why, and how to choose `tau`. The actor's reward is a `cogflow_reward`. An attempt
    may have `watching_tokens`, with what follows it `row_tokens` of the `limits`.
    `play/tries` and `play/accepted` tell of the gate, `play/ended/...` of attempts that
    nothing could follow. A gate that raises ends its episode untrained, and is counted
    there too.
    """
    program = functools.partial(
        watched_first,
        gate=gate,
        tau=tau,
        tries=tries,
        watching_tokens=watching_tokens,
    )
    act = functools.partial(play, program=program, group_size=group_size, limits=limits)
    return clipped_recipe(
        act,
        advantage=functools.partial(advantages.group_zscore, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
