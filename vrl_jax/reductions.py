"""From per-token losses to one number: sum and divisor, kept apart.

Adding the `Mean`s of micro-batches, and dividing once, gives what one large batch
gives. Rows without tokens count in no divisor, so that filler rows change nothing.
Three functions are released variants to which the split matters; they say so.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from vrl_jax import masked
from vrl_jax.types import Mean


def token_mean(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Mean:
    """Every token counts once: sum_it x_it / sum_i n_i.

    DAPO, section 3.3, https://arxiv.org/abs/2503.14476.
    """
    return _mean(masked.sum(x, mask), mask.sum())


def sequence_mean(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Mean:
    """Every response counts once: mean_i (sum_t x_it / n_i).

    GRPO, equation 3, https://arxiv.org/abs/2402.03300.
    """
    return _mean(masked.mean(x, mask, axis=1).sum(), mask.any(axis=1).sum())


def constant_length(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], *, max_length: int
) -> Mean:
    """sum_it x_it / (B max_length), whatever the lengths; 1 gives the sequence sum.

    Dr. GRPO, section 3.2, https://arxiv.org/abs/2503.20783, with TRL's divisor; verl
    does not divide by B: `sum_over_length`. B counts the responses that have tokens to
    train. TRL counts those whose tokens are all masked as well, such as truncated ones,
    which here are no different from rows that fill a batch up.
    """
    return _mean(masked.sum(x, mask), mask.any(axis=1).sum() * max_length)


def sum_over_length(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], *, max_length: int
) -> Mean:
    """sum_it x_it / max_length of a micro-batch, and the mean of micro-batches.

    verl's "seq-mean-token-sum-norm", for Dr. GRPO, which does not divide by B: as
    released it grows with the rows of a micro-batch. `constant_length` does not.
    https://github.com/volcengine/verl at b178a3c.
    """
    return Mean(masked.sum(x, mask), mask.any().astype(x.dtype) * max_length)


def mean_of_token_means(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Mean:
    """The token mean of a micro-batch, and the mean of micro-batches.

    TRL's "bnpo", and PAPO and NoisyRollout as released: tokens of a micro-batch with
    few of them count more. `token_mean` does not depend on the split.
    """
    total, count = token_mean(x, mask)
    return _mean(total / jnp.maximum(count, 1), mask.any())


def easyr1_sequence_mean(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Mean:
    """The sequence mean of a micro-batch, which counts by its share of the tokens.

    EasyR1's "seq" mode as released, https://github.com/hiyouga/EasyR1; only of one
    micro-batch is it `sequence_mean`.
    """
    total, count = sequence_mean(x, mask)
    return _mean(total / jnp.maximum(count, 1) * mask.sum(), mask.sum())


def row_mean(x: Float[Array, " B"], valid: Bool[Array, " B"]) -> Mean:
    """Every row counts once: for what is one number a pair or a response already."""
    return _mean(masked.sum(x, valid), valid.sum())


def _mean(total: Float[Array, ""], count: Shaped[Array, ""]) -> Mean:
    return Mean(total, count.astype(total.dtype))
