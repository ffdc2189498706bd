"""Tasks that come one after another: what is kept of them, and who answers."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from vrl_jax.evals.held_out import Answered, measurements
from vrl_jax.programs.cascade import answered_by
from vrl_jax.types import Sample

Owner = Callable[[Sample], str | None]
"""The name of the expert whose task a sample is of; None where it is of none."""


def final_average(scores: Float[np.ndarray, "T T"]) -> float:
    """AP = (1 / T) sum_i a_{T,i}; scores[t, i] is a_{t,i}, of task i after stage t.

    Of the stages before the last nothing is read.
    """
    return float(_square(scores)[-1].mean())


def backward_transfer(scores: Float[np.ndarray, "T T"]) -> float:
    """BWT = (1 / (T - 1)) sum_{i<T} (a_{T,i} - a_{i,i}): below 0, tasks are forgotten.

    NaN of one task, which nothing came after. As in GEM,
    https://arxiv.org/abs/1706.08840.
    """
    scores = _square(scores)
    kept = scores[-1] - scores.diagonal()
    return float(kept[:-1].mean()) if len(kept) > 1 else math.nan


def _square(scores: Float[np.ndarray, "T T"]) -> Float[np.ndarray, "T T"]:
    scores = np.asarray(scores, float)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not scores.size:
        raise ValueError(
            "scores have a row for each stage and a column for each of its tasks, as "
            f"many as there are stages; got the shape {scores.shape}."
        )
    return scores


def routing(
    answered: Sequence[Sequence[Answered]],
    owner: Owner,
    *,
    fallback: str = "general",
) -> dict[str, float]:
    """Whether those answered in `cascade.first_to_accept` who should have.

    `routing/accuracy`: of the responses to questions of a task, the share that its own
    expert gave. Of those to other questions `routing/rejection` is the share that was
    left to the fallback, and `routing/fallback_score` the accuracy of these. An episode
    that ended before an answer was given by nobody and left to nobody: it stays among
    those that both shares are of, and lowers them. NaN where there is nothing to count.
    """
    flat = [one for group in answered for one in group]
    pairs = [(owner(one.episode.sample), answered_by(one.episode)) for one in flat]
    own = [who == wanted for wanted, who in pairs if wanted is not None]
    left = [who == fallback for wanted, who in pairs if wanted is None]
    foreign = [
        one
        for one, (wanted, who) in zip(flat, pairs, strict=True)
        if wanted is None and who == fallback
    ]
    score = measurements([foreign])["val/accuracy"] if foreign else math.nan
    return {
        "routing/accuracy": float(np.mean(own)) if own else math.nan,
        "routing/rejection": float(np.mean(left)) if left else math.nan,
        "routing/fallback_score": score,
    }
