"""From rewards to advantages: one a response, one a step, or one a token.

A group is `group_size` consecutive rewards: the responses to one prompt. A reward that
could not be had is NaN: it takes no part in its group's statistics, and its response
has advantage 0.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vrl_jax import masked


def by_group(x: Shaped[Array, " B"], *, group_size: int) -> Shaped[Array, "P G"]:
    """One row a prompt."""
    if x.ndim != 1:
        raise ValueError(
            f"a reward is one number a response, got an array of shape {x.shape}."
        )
    if group_size < 2 or x.shape[0] % group_size:
        raise ValueError(
            "rewards must hold whole groups of at least 2 responses, got "
            f"{x.shape[0]} rewards for group_size={group_size}. Sample every prompt "
            "group_size times and keep or drop its responses together."
        )
    return x.reshape(-1, group_size)


def group_centered(
    rewards: Float[Array, " B"], *, group_size: int
) -> Float[Array, " B"]:
    """R_i - mean_group(R).

    Dr. GRPO, section 3.2, https://arxiv.org/abs/2503.20783.
    """
    groups = by_group(rewards, group_size=group_size)
    known = ~jnp.isnan(groups)
    # Equal rewards such as 0.1 have a mean one rounding away from them, which a
    # later division by a std of the same size would blow up.
    differs = masked.max(groups, known, 1) > masked.min(groups, known, 1)
    centered = groups - masked.mean(groups, known, 1)[:, None]
    return jnp.where(known & differs[:, None], centered, 0).reshape(-1)


def group_zscore(
    rewards: Float[Array, " B"], *, group_size: int, eps: float = 1e-6
) -> Float[Array, " B"]:
    """(R_i - mean_group(R)) / (std_group(R) + eps), std with divisor G - 1.

    GRPO, section 4.1.2, https://arxiv.org/abs/2402.03300. The paper leaves divisor and
    eps open: the unbiased std and 1e-6 are those of verl and EasyR1; TRL has 1e-4.
    Exactly 0 in a group of equal rewards.
    """
    return _zscore(rewards, group_size, eps, ddof=1)


def group_zscore_population(
    rewards: Float[Array, " B"], *, group_size: int, eps: float = 1e-6
) -> Float[Array, " B"]:
    """`group_zscore` with divisor G in the std, larger by sqrt(G / (G - 1))."""
    return _zscore(rewards, group_size, eps, ddof=0)


def _zscore(
    rewards: Float[Array, " B"], group_size: int, eps: float, ddof: int
) -> Float[Array, " B"]:
    centered = group_centered(rewards, group_size=group_size)
    known = by_group(~jnp.isnan(rewards), group_size=group_size).sum(axis=1)
    squares = jnp.square(by_group(centered, group_size=group_size)).sum(axis=1)
    spread = jnp.sqrt(squares / jnp.maximum(known - ddof, 1))
    return centered / (jnp.repeat(spread, group_size) + eps)


def batch_zscore(
    rewards: Float[Array, " B"], *, group_size: int, eps: float = 1e-4
) -> Float[Array, " B"]:
    """(R_i - mean_group(R)) / (std_batch(R) + eps), std over all responses, B - 1.

    PPO-lite, "Tricks or Traps?", https://arxiv.org/abs/2508.08221, as in TRL's
    scale_rewards="batch", whose eps this is. A prompt that is nearly solved is not
    blown up, as its own std would.
    """
    centered = group_centered(rewards, group_size=group_size)
    return centered / (masked.std(rewards, ~jnp.isnan(rewards)) + eps)


def batch_zscore_population(
    rewards: Float[Array, " B"], *, group_size: int, eps: float = 1e-6
) -> Float[Array, " B"]:
    """`batch_zscore` with divisor B in the std.

    Flow-GRPO's global std, https://arxiv.org/abs/2505.05470; PaCo-RL clips it to
    [-5, 5], https://arxiv.org/abs/2512.04784.
    """
    centered = group_centered(rewards, group_size=group_size)
    return centered / (masked.std(rewards, ~jnp.isnan(rewards), ddof=0) + eps)


def leave_one_out(
    rewards: Float[Array, " B"], *, group_size: int
) -> Float[Array, " B"]:
    """R_i - mean of the other rewards of its group = G / (G - 1) (R_i - mean(R)).

    RLOO, https://arxiv.org/abs/2402.14740. A group of one has no others:
    verl gives such a row its reward or 0, this refuses it.
    """
    centered = group_centered(rewards, group_size=group_size)
    known = by_group(~jnp.isnan(rewards), group_size=group_size).sum(axis=1)
    return jnp.repeat(known / jnp.maximum(known - 1, 1), group_size) * centered


def split_centered(
    rewards: Float[Array, " B"], own: Bool[Array, " B"], *, group_size: int
) -> Float[Array, " B"]:
    """R_i - mean of the group's rewards where `own`, for every response of the group.

    The "split" variant of LUFFY, https://arxiv.org/abs/2504.14945: an expert's response
    is judged by the policy's own, without raising their baseline. 0 where no reward of
    the group is known to be its own.
    """
    groups = by_group(rewards, group_size=group_size)
    counted = own.reshape(groups.shape) & ~jnp.isnan(groups)
    centered = groups - masked.mean(groups, counted, 1)[:, None]
    usable = ~jnp.isnan(groups) & counted.any(axis=1, keepdims=True)
    return jnp.where(usable, centered, 0).reshape(-1)


def decoupled(
    rewards: Float[Array, "K B"],
    weights: Float[Array, " K"],
    *,
    group_size: int,
    eps: float = 1e-4,
) -> Float[Array, " B"]:
    """Group z-scores of each reward, their weighted sum, its z-score in the batch.

    A reward of small spread then counts as much as one of large spread. GDPO,
    https://arxiv.org/abs/2601.05242, as TRL's normalize_then_sum, whose eps this is and
    which skips what is NaN. A response without any reward gets 0.
    """
    each = [group_zscore(row, group_size=group_size, eps=eps) for row in rewards]
    total = weights @ jnp.stack(each)
    known = ~jnp.isnan(rewards).all(axis=0)
    centered = jnp.where(known, total - masked.mean(total, known), 0)
    return centered / (masked.std(total, known) + eps)


def pass_at_k(
    rewards: Float[Array, " B"], *, group_size: int, eps: float = 1e-6
) -> Float[Array, " B"]:
    """(R_max - R_second) / (std_group(R) + eps) for the best response, 0 for the rest.

    Pass@k policy optimisation, https://arxiv.org/abs/2503.19595, as in verl and EasyR1.
    Older forks of EasyR1 leave the other rows at their reward. Two that share the
    best reward give 0.
    """
    groups = by_group(rewards, group_size=group_size)
    known = ~jnp.isnan(groups)
    ranked = jnp.where(known, groups, -jnp.inf)
    second, first = jnp.moveaxis(jnp.sort(ranked, axis=1)[:, -2:], 1, 0)
    gain = jnp.where(second > -jnp.inf, first - second, 0)
    gain = gain / (jax.vmap(masked.std)(groups, known) + eps)
    best = jnp.arange(group_size) == jnp.argmax(ranked, axis=1)[:, None]
    return jnp.where(best, gain[:, None], 0).reshape(-1)


def length_weighted(
    rewards: Float[Array, " B"], lengths: Int[Array, " B"], *, group_size: int
) -> Float[Array, " B"]:
    """R_i - sum(n R) / sum(n) over the group: the baseline of least variance.

    OPO, https://arxiv.org/abs/2505.23585, and verl: the optimal baseline
    where the gradient's squared norm grows with the length n. Exactly 0 in a group of
    equal rewards.
    """
    groups = by_group(rewards, group_size=group_size)
    known = ~jnp.isnan(groups)
    weights = jnp.where(known, lengths.reshape(groups.shape), 0)
    total = jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
    weighted = masked.sum(weights * groups, known, 1)
    differs = masked.max(groups, known, 1) > masked.min(groups, known, 1)
    centered = groups - weighted[:, None] / total
    return jnp.where(known & differs[:, None], centered, 0).reshape(-1)


def greedy_baseline(
    rewards: Float[Array, " B"], greedy_rewards: Float[Array, " B"]
) -> Float[Array, " B"]:
    """R_i - R(greedy response to the same prompt).

    ReMax, https://arxiv.org/abs/2310.10505. verl subtracts from the
    reward-to-go, which is the same for one reward at the end. EasyR1 multiplies a
    vector with a matrix there, which is wrong unless B and T differ, and then raises.
    """
    gain = rewards - greedy_rewards
    return jnp.where(jnp.isnan(gain), 0, gain)


def gpg(rewards: Float[Array, " B"], *, group_size: int) -> Float[Array, " B"]:
    """B / (B - M) (R_i - mean_group(R)), M the responses in groups without signal.

    GPG, https://arxiv.org/abs/2504.02546, with F_norm = 1: a batch with
    few mixed groups is not a small step. verl has another factor, `gpg_released`. The
    paper's threshold on (B - M) / B, below which it samples more, is a matter of
    sampling: `programs.dynamic_sampling`.
    """
    centered = group_centered(rewards, group_size=group_size)
    signal = by_group(centered, group_size=group_size).any(axis=1).sum()
    scale = (rewards.size // group_size) / jnp.maximum(signal, 1)
    return scale * centered


def gpg_released(rewards: Float[Array, " B"], *, group_size: int) -> Float[Array, " B"]:
    """B / count(R != 0) (R_i - mean_group(R)): GPG as in verl.

    Not the paper's factor: adding a constant to all rewards changes it.
    """
    known = ~jnp.isnan(rewards)
    scale = known.sum() / jnp.maximum((known & (rewards != 0)).sum(), 1)
    return scale * group_centered(rewards, group_size=group_size)


def at_last_token(
    rewards: Float[Array, " B"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """The reward of a response at its last valid token, 0 elsewhere."""
    later = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return jnp.where(mask & (later == 1), rewards[:, None], 0)


def reward_to_go(
    rewards: Float[Array, "B S"], mask: Bool[Array, "B S"], *, discount: float = 1.0
) -> Float[Array, "B S"]:
    """sum over valid s' >= s of discount^(valid steps between) r_s'; 0 off the mask.

    Over tokens, steps or turns alike. What is not valid (padding, the words of a
    tool) neither discounts nor earns. verl starts anew after a gap; here the words of
    a tool do not cut the turn before them off from the outcome.
    """
    return _backwards(jnp.where(mask, rewards, 0), mask, discount)


def generalized_advantages(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    discount: float = 1.0,
    decay: float = 0.95,
) -> Float[Array, "B T"]:
    """A_t = delta_t + discount decay A_t+1,  delta_t = r_t + discount V_t+1 - V_t.

    GAE, equation 16, https://arxiv.org/abs/1506.02438. t + 1 is the next valid token
    and V is 0 after the last. The returns are A + V. verl whitens the result: that is
    `whiten`.
    """
    values = jnp.where(mask, values, 0)
    following = _next_valid(values, mask)
    delta = jnp.where(mask, rewards, 0) + discount * following - values
    return _backwards(jnp.where(mask, delta, 0), mask, discount * decay)


def whiten(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], *, eps: float = 1e-8
) -> Float[Array, "B T"]:
    """(x - mean) / sqrt(var + eps) over all valid tokens, var unbiased; 0 elsewhere.

    REINFORCE++, https://arxiv.org/abs/2501.03262: of `reward_to_go`; its
    variant with baseline: of `group_centered`, copied to the tokens. EasyR1 forgets to
    mask the padding again. 0 where all tokens are equal.
    """
    centered = jnp.where(mask, x, 0) - masked.mean(x, mask)
    spread = masked.max(x, mask) > masked.min(x, mask)
    scale = jnp.sqrt(masked.std(x, mask) ** 2 + eps)
    return jnp.where(mask & spread, centered / scale, 0)


def step_zscore(
    rewards: Float[Array, "B S"],
    mask: Bool[Array, "B S"],
    *,
    group_size: int,
    eps: float = 1e-6,
) -> Float[Array, "B S"]:
    """(r_is - mean) / (std + eps) over all valid steps or turns of the group.

    GRPO with process supervision, section 4.1.3, https://arxiv.org/abs/2402.03300,
    whose advantage of a token is the `reward_to_go` of this. Exactly 0 in a group
    whose steps are all equal, or that has only one.
    """
    by_group(rewards[:, 0], group_size=group_size)
    rows = (-1, group_size, rewards.shape[1])

    def zscore(
        x: Float[Array, "G S"], valid: Bool[Array, "G S"]
    ) -> Float[Array, "G S"]:
        spread = masked.max(x, valid) > masked.min(x, valid)
        centered = jnp.where(valid, x, 0) - masked.mean(x, valid)
        return jnp.where(valid & spread, centered / (masked.std(x, valid) + eps), 0)

    return jax.vmap(zscore)(rewards.reshape(rows), mask.reshape(rows)).reshape(
        rewards.shape
    )


def at_tokens(
    steps: Float[Array, "B S"], number: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """x_t = steps[number_t]: what a step or turn earned, for each of its tokens.

    `number` says which step a token belongs to. 0 off the mask.
    """
    number = jnp.clip(number, 0, steps.shape[1] - 1)
    return jnp.where(mask, jnp.take_along_axis(steps, number, axis=1), 0)


def of_steps(
    x: Float[Array, "B T"], number: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B S"]:
    """steps_s = sum of x_t over number_t = s: the way back from `at_tokens`.

    With a mask of one token a step, such as `masked.ends`, what is said there. S = T,
    for a row has no more steps than tokens; 0 for those that it does not have.
    """
    add = functools.partial(jax.ops.segment_sum, num_segments=x.shape[1])
    return jax.vmap(add)(jnp.where(mask, x, 0), number)


def _backwards(
    x: Float[Array, "B S"], mask: Bool[Array, "B S"], discount: float
) -> Float[Array, "B S"]:
    """y_s = x_s + discount y of the next valid s; 0 off the mask."""

    def add(carry, column):
        value, valid = column
        carry = jnp.where(valid, value + discount * carry, carry)
        return carry, jnp.where(valid, carry, 0)

    start = jnp.zeros(x.shape[0], x.dtype)
    return jax.lax.scan(add, start, (x.T, mask.T), reverse=True)[1].T


def _next_valid(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """x of the next valid token, 0 after the last."""

    def follow(carry, column):
        value, valid = column
        return jnp.where(valid, value, carry), carry

    start = jnp.zeros(x.shape[0], x.dtype)
    return jax.lax.scan(follow, start, (x.T, mask.T), reverse=True)[1].T
