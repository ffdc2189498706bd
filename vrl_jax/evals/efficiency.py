"""What an answer costs in tokens, beside whether it is right.

Of N responses with c right or how right, from 0 to 1, and L tokens; the measures that
"A Survey of Efficient Reasoning for Large Reasoning Models" gathers,
https://arxiv.org/abs/2503.21614. They read the lines of `predictions.jsonl` so, without
those that nobody could score:

    rows = [row for row in rows if row["correct"] is not None]
    correct = [row["correct"] for row in rows]
    finished = [row["finished"] for row in rows]
    lengths = [row["meta"]["tokens"] for row in rows]
"""

import numpy as np
from jaxtyping import Float

Each = Float[np.ndarray, " N"]


def per_thousand_tokens(correct: Each, lengths: Each) -> float:
    """1000 mean(c) / mean(L)."""
    return float(1000 * np.mean(correct) / np.mean(lengths))


def within(correct: Each, lengths: Each, budget: float) -> float:
    """mean(c [L <= budget]): what would be right had the rest been cut off."""
    return float(np.mean(np.asarray(correct) * (np.asarray(lengths) <= budget)))


def area_within(correct: Each, lengths: Each, longest: float) -> float:
    """The mean of `within` over all budgets from 0 to `longest`, exactly."""
    left = np.maximum(1 - np.asarray(lengths) / longest, 0)
    return float(np.mean(np.asarray(correct) * left))


def parts(correct: Each, finished: Each, lengths: Each) -> dict[str, float]:
    """mean(c f) / mean(L) = finished right_if_finished / tokens; f: it came to an end.

    finished = mean(f), right_if_finished = mean(c f) / mean(f), 0 where nothing ended,
    tokens = mean(L). So a response that was cut off is wrong, whatever its c, unlike
    in `per_thousand_tokens`.
    """
    finished = np.asarray(finished, bool)
    right = np.asarray(correct)[finished]
    return {
        "finished": float(finished.mean()),
        "right_if_finished": float(right.mean()) if len(right) else 0.0,
        "tokens": float(np.mean(lengths)),
    }


def length_ratio(
    correct: Each, lengths: Each, base_correct: Each, base_lengths: Each
) -> float | None:
    """Mean of L / L_base over the questions that both get right; None without any."""
    both = (np.asarray(correct) == 1) & (np.asarray(base_correct) == 1)
    if not both.any():
        return None
    return float(np.mean(np.asarray(lengths)[both] / np.asarray(base_lengths)[both]))


def accuracy_efficiency(
    accuracy: float,
    length: float,
    base_accuracy: float,
    base_length: float,
    *,
    gain: float = 3.0,
    loss: float = 5.0,
) -> float:
    """AES: dL + gain dA where dA >= 0, else dL - loss |dA|.

    dL = (L_base - L) / L_base, dA = (A - A_base) / A_base; a point that is lost weighs
    more than one that is won. O1-Pruner, https://arxiv.org/abs/2501.12570. `ValueError`
    for a base of 0, of which there is no share.
    """
    if not (base_accuracy > 0 and base_length > 0):
        raise ValueError(
            "changes are shares of the base's accuracy and length, which must be above "
            f"0: got base_accuracy={base_accuracy} and base_length={base_length}."
        )
    shorter = (base_length - length) / base_length
    change = (accuracy - base_accuracy) / base_accuracy
    return shorter + (gain if change >= 0 else loss) * change


def outcome_efficiency(correct: Each, first: Each, lengths: Each) -> float:
    """mean(c T_first / T): how little comes after the first right answer.

    `first` is the number of tokens up to it. "Do NOT Think That Much for 2+3=?",
    section 2.2, https://arxiv.org/abs/2412.21187.
    """
    return float(np.mean(np.asarray(correct) * np.asarray(first) / np.asarray(lengths)))


def process_efficiency(distinct: Each, lengths: Each) -> float:
    """mean(T_distinct / T): the share of tokens in solutions that differ from others.

    Section 2.3 of https://arxiv.org/abs/2412.21187.
    """
    return float(np.mean(np.asarray(distinct) / np.asarray(lengths)))
