"""From per-token losses to one number: sum and divisor, kept apart.

Adding the `Mean`s of micro-batches, and dividing once, gives what one large batch
gives. Rows without tokens count in no divisor, so that filler rows change nothing.
"""

from jaxtyping import Array, Bool, Float, Int

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
    does not divide by B.
    """
    return _mean(masked.sum(x, mask), mask.any(axis=1).sum() * max_length)


def row_mean(x: Float[Array, " B"], valid: Bool[Array, " B"]) -> Mean:
    """Every row counts once: for what is one number a pair or a response already."""
    return _mean(masked.sum(x, valid), valid.sum())


def _mean(total: Float[Array, ""], count: Int[Array, ""]) -> Mean:
    return Mean(total, count.astype(total.dtype))
