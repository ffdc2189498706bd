"""What a recipe may ask of a model: play, and score what was played."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vrl_jax import perception, views
from vrl_jax.engine import slots as decoding_slots
from vrl_jax.engine.decoding import Model
from vrl_jax.engine.likelihood import (
    divergence,
    final_states,
    in_pieces,
    likelihood,
    state_values,
)
from vrl_jax.engine.processing import Processor
from vrl_jax.models.policy import Params, Policy
from vrl_jax.types import Batch, Episode, Images, Likelihood, Prompts, Rollout, Shown

Reward = Callable[[Sequence[Episode]], Sequence[float | Mapping[str, float]]]
View = Callable[[Key[Array, ""], Images], Images]


def ignore(episodes: Sequence[Episode], scores: Sequence[Mapping[str, float]]) -> None:
    """The observer that looks away."""


@dataclasses.dataclass(frozen=True)
class Actor:
    """A policy that plays, with what playing depends on.

    `allowed` ids may be sampled, the others have probability 0; `top_k` (0: all) and
    `top_p` narrow them further, see `engine.sampling`. A response ends at one of
    `stop_ids` or after `max_new_tokens`; `slots` are written at a time. `reward` sees
    one group at a time, in the calling thread or, with `reward_threads`, that many
    groups at once: for rewards that wait for others and may run in threads, such as a
    judge behind an endpoint. With `program_threads` so many programs go on at once,
    with their tools, else one after the other in the calling thread. Of several
    processes each computes its share of the rewards, or all do all with
    `rewards_everywhere`: for a judge on the mesh, and without threads (a ValueError).
    `observe` is told of every group that was played, kept or not; rewards see `step`
    and `total_steps`. Passes without gradient take at most `prompts_per_pass` prompts
    at a time. `note` says which of the final hidden states are kept beside the tokens:
    `slots.nothing` of them, or all, `slots.states`. `weights` makes of the params what
    is read at every token.
    """

    policy: Policy
    params: Params
    processor: Processor
    allowed: Bool[Array, " V"]
    stop_ids: Int[Array, " S"]
    reward: Reward
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    slots: int = 64
    prompts_per_pass: int = 64
    reward_threads: int = 0
    program_threads: int = 0
    rewards_everywhere: bool = False
    step: int = 0
    total_steps: int = 0
    observe: Callable[[Sequence[Episode], Sequence[Mapping[str, float]]], None] = ignore
    note: Callable = decoding_slots.nothing
    weights: Callable[[Policy, Params], decoding_slots.Weights] = decoding_slots.unstack

    def __post_init__(self) -> None:
        """Devices that work together must be given their work in one order."""
        if self.rewards_everywhere and self.reward_threads:
            raise ValueError(
                "rewards that all processes compute, rewards_everywhere=True, may use "
                "the mesh, on which threads would wait for each other: leave "
                f"reward_threads={self.reward_threads} out."
            )

    def model(self) -> Model:
        """What decoding reads of it."""
        return Model(
            self.policy,
            self.params,
            self.allowed,
            self.max_new_tokens,
            self.slots,
            self.processor.tokenizer,
            self.note,
            self.weights,
        )

    def likelihood(self, rollout: Rollout | Batch) -> Likelihood:
        """log pi and entropy of the rollout's tokens, given its prompts as they are.

        Under a reference with `dataclasses.replace(actor, params=reference)`, given
        other pictures with `seeing(rollout, pictures)`.
        """
        fixed = (self.policy, self.prompts_per_pass)
        return _score(*fixed, self.params, self.allowed, _asked(rollout))

    def painting(self, view: Callable) -> View:
        """One of `views`, with the black and grey of this model's pixels."""
        front_end = self.processor.front_end
        return views.with_statistics(view, front_end.pixel_mean, front_end.pixel_std)

    def add_logprobs(
        self, rollout: Rollout, name: str, view: View, key: Key[Array, ""]
    ) -> Rollout:
        """log pi of the same tokens under another view, as `extra_logprobs[name]`.

        Every response is scored under a draw of its own, view(fold_in(key, row), its
        prompt's pictures), whatever the size of a pass, and reads a prompt of its own:
        a pass takes `prompts_per_pass` of those. Pictures between turns stay as they
        are.
        """
        scored = self._under(view, _likelihood, rollout, key, rollout.log_kept)
        extra = {**rollout.extra_logprobs, name: scored.logprobs}
        return dataclasses.replace(rollout, extra_logprobs=extra)

    def add_shared_logprobs(
        self, rollout: Rollout, name: str, view: View, key: Key[Array, ""]
    ) -> Rollout:
        """As `add_logprobs`, under one draw for each prompt, which its responses share.

        A prompt is then read once, and not once for each of its responses.
        """
        images = look(view, key, rollout.prompts)
        seen = self.likelihood(seeing(rollout, images)).logprobs
        extra = {**rollout.extra_logprobs, name: seen}
        return dataclasses.replace(rollout, extra_logprobs=extra)

    def add_blind_logprobs(self, rollout: Rollout, name: str) -> Rollout:
        """log pi of the same tokens, none of which sees a picture: `blind`."""
        seen = self.likelihood(blind(rollout)).logprobs
        extra = {**rollout.extra_logprobs, name: seen}
        return dataclasses.replace(rollout, extra_logprobs=extra)

    def add_divergence(
        self,
        rollout: Rollout,
        name: str,
        view: View,
        key: Key[Array, ""],
        *,
        measure: Callable = perception.view_kl,
    ) -> Rollout:
        """`measure` of the rollout's view and another one, as `divergences[name]`.

        Drawn as in `add_logprobs`, and exactly 0 where the view shows the same. Costs
        as much, and a second stream in the head, if the rollout has its `states`; they
        are computed first if it has not, and dropped.
        """
        states = rollout.states
        if states is None:
            fixed = (self.policy, self.prompts_per_pass)
            states = _of_states(_themselves, *fixed, self.params, _asked(rollout))
        found = self._under(view, _divergence(measure), rollout, key, states)
        divergences = {**rollout.divergences, name: found}
        return dataclasses.replace(rollout, divergences=divergences, states=None)

    def add_values(self, rollout: Rollout, name: str) -> Rollout:
        """What the critic of this name says of each token's state, as `extra[name]`.

        Of the state that predicts the token; 0 off the mask. Nothing goes through the
        head. `ValueError` where the policy has no such critic.
        """
        fixed = (self.policy, self.prompts_per_pass)
        found = _of_states(state_values, *fixed, self.params, _asked(rollout))
        if name not in found:
            raise ValueError(
                f"this policy has no critic {name!r} (it has "
                f"{', '.join(found) or 'none'}): models.critic.with_critics makes one; "
                "give the actor its policy and its params."
            )
        extra = {**rollout.extra, name: found[name]}
        return dataclasses.replace(rollout, extra=extra)

    def _under(self, view, read, rollout, key, noted):
        fixed = (self.policy, view, read, self.prompts_per_pass)
        asked = _asked(rollout)
        return _score_view(*fixed, self.params, self.allowed, asked, key, noted)


Scored = TypeVar("Scored", Rollout, Batch)


class _Asked(NamedTuple):
    """What scoring reads of a rollout, or of a batch.

    jit compiles again for other names, and those of rewards and facts differ between
    steps whose rows come from several sources: they are left out.
    """

    prompts: Prompts
    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T 3"]
    mask: Bool[Array, "B T"]
    temperature: Float[Array, " B"]
    log_kept: Float[Array, "B T"] | None
    shown: Shown | None


def _asked(data: Rollout | Batch) -> _Asked:
    return _Asked(*(getattr(data, name) for name in _Asked._fields))


def seeing(data: Scored, images: Images) -> Scored:
    """The same prompts and responses with other pictures."""
    return dataclasses.replace(
        data, prompts=dataclasses.replace(data.prompts, images=images)
    )


def blind(data: Scored) -> Scored:
    """The same prompts and responses, with attention to the pictures' tokens masked.

    What is left stands where it stood: unlike a prompt without the picture, and unlike
    a black one, no position moves and no pixel counts. The view of PGPO,
    https://arxiv.org/abs/2604.01840. `ValueError` where pictures stand between turns.
    """
    if data.shown is not None:
        raise ValueError(
            "a blind pass hides the pictures of prompts, and these responses saw more "
            "between their turns: score them under a view of the pictures."
        )
    text = data.prompts.mask & (data.prompts.slots == 0)
    return dataclasses.replace(
        data, prompts=dataclasses.replace(data.prompts, mask=text)
    )


@functools.partial(jax.jit, static_argnums=0)
def look(view: View, key: Key[Array, ""], seen: Prompts | Shown) -> Images:
    """One draw of the view for each prompt, shared by its responses.

    Or one for each response, of what it was shown between its turns.
    """
    rows = jnp.arange(seen.slots.shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return views.each_prompt(view, keys, seen.images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    policy: Policy,
    prompts_per_pass: int,
    params: Params,
    allowed: Bool[Array, " V"],
    asked: _Asked,
) -> Likelihood:
    def score(prompts: Prompts, noted, *rows):
        return likelihood(policy, params, prompts, *rows, allowed, *noted)

    return in_pieces(
        score,
        prompts_per_pass,
        asked.prompts,
        (asked.log_kept, asked.shown),
        asked.tokens,
        asked.positions,
        asked.mask,
        asked.temperature,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_states(
    read: Callable,
    policy: Policy,
    prompts_per_pass: int,
    params: Params,
    asked: _Asked,
) -> Any:
    """read(policy, params, final hidden states, mask), `state_values` for one."""

    def piece(prompts: Prompts, shown, mask, *rows):
        states = final_states(policy, params, prompts, *rows, shown)
        return read(policy, params, states, mask)

    return in_pieces(
        piece,
        prompts_per_pass,
        asked.prompts,
        asked.shown,
        asked.mask,
        asked.tokens,
        asked.positions,
    )


def _themselves(policy, params, states, mask):
    return states


def _likelihood(policy, params, prompts, responses, allowed, log_kept, shown, moved):
    return likelihood(policy, params, prompts, *responses, allowed, log_kept, shown)


@functools.cache
def _divergence(measure: Callable) -> Callable:
    """One function for each measure, so that jit finds what it compiled."""

    def read(policy, params, prompts, responses, allowed, states, shown, moved):
        found = divergence(
            measure, policy, params, prompts, states, *responses, allowed, shown
        )
        return jnp.where(moved[:, None], found, 0)

    return read


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _score_view(
    policy: Policy,
    view: View,
    read: Callable,
    prompts_per_pass: int,
    params: Params,
    allowed: Bool[Array, " V"],
    asked: _Asked,
    key: Key[Array, ""],
    noted: Array | None,
) -> Likelihood | Float[Array, "B T"]:
    batch = asked.tokens.shape[0]
    group = batch // asked.prompts.tokens.shape[0]

    def score(prompts: Prompts, *rows: Any) -> Likelihood:
        # Each response has pictures of its own: no prompt is shared any more, and a
        # pack is there `group` times, once with each prompt's g-th response.
        count, packs = prompts.tokens.shape[0], prompts.images.frames.shape[0]

        def swapped(first: int, second: int, x: Array) -> Array:
            axes = x.reshape(packs, first, second, *x.shape[1:])
            return axes.swapaxes(1, 2).reshape(x.shape)

        by_pack = functools.partial(swapped, count // packs, group)
        by_prompt = functools.partial(swapped, group, count // packs)

        def repeated(x: Array) -> Array:
            return jnp.repeat(x, group, axis=0)

        noted, numbers, *rows = jax.tree.map(by_pack, rows)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        images = jax.tree.map(repeated, prompts.images)
        prompts = dataclasses.replace(prompts, images=None)
        prompts = jax.tree.map(lambda x: by_pack(repeated(x)), prompts)
        seen = views.each_prompt(view, keys, images)
        moved = _moved(seen, images, count // packs)
        prompts = dataclasses.replace(prompts, images=seen)
        scored = read(policy, params, prompts, rows, allowed, *noted, moved)
        return jax.tree.map(by_prompt, scored)

    return in_pieces(
        score,
        max(prompts_per_pass // group, 1),  # copies count
        asked.prompts,
        (noted, asked.shown),
        jnp.arange(batch),
        asked.tokens,
        asked.positions,
        asked.mask,
        asked.temperature,
    )


def _moved(images: Images, others: Images, prompts: int) -> Bool[Array, " P"]:
    """Which prompts' pictures are not the same, of `prompts` to a pack."""
    unequal = (images.patches != others.patches).any(axis=-1) & (images.frames > 0)
    owner = images.origins[..., 0, None] == jnp.arange(prompts)
    return (unequal[..., None] & owner).any(axis=1).reshape(-1)


def allowed_ids(processor: Processor, rows: int) -> Bool[Array, " V"]:
    """Which of the embedding's `rows` may be sampled.

    Not those beyond the tokenizer, and not the vision placeholders: a sampled image
    token would break the next forward pass.
    """
    allowed = jnp.arange(rows) < len(processor.tokenizer)
    return allowed.at[jnp.array(processor.front_end.unsampled)].set(False)
