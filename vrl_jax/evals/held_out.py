"""What a policy is worth on held-out samples, and whether it looks at the pictures."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from vrl_jax.engine.actor import Actor
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.types import Episode, Sample

GroupAct = Callable[..., Any]
"""act(actor, batches, key, group_size=): how questions are answered, as in a recipe, or
as by `programs.acting.measured`; nobody reads what it gives."""

BOOKS = ("overall", "accuracy", "unscored", "errors")
"""Scores that have a name of their own in `measurements`."""


ENDS = ("ended/", "no_room/")
"""How facts begin of which the share of episodes is told."""


class Answered(NamedTuple):
    """A response with its scores."""

    episode: Episode
    scores: Mapping[str, float]


def answers(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    act: GroupAct = single_turn,
    greedy: bool = True,
    each: int = 1,
    size: int | None = None,
) -> list[list[Answered]]:
    """`each` responses to every sample, in their order; see `in_passes`."""
    passes = in_passes(
        actor, samples, key, act=act, greedy=greedy, each=each, size=size
    )
    return [group for groups in passes for group in groups]


def in_passes(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    act: GroupAct = single_turn,
    greedy: bool = True,
    each: int = 1,
    size: int | None = None,
) -> Iterator[list[list[Answered]]]:
    """The same, `size` samples at a time, by default `prompts_per_pass`.

    `act` plays one batch, a group a sample, and tells the actor's `observe` of each, as
    `programs.acting.measured` does with any program; a frozen model that it asks draws
    as its own actor says. A pass ends when its longest episode does: more at a time
    idle fewer slots.
    """
    actor = dataclasses.replace(actor, top_k=1) if greedy else actor
    size = min(size or actor.prompts_per_pass, len(samples))
    for start in range(0, len(samples), size):
        found: list[list[Answered]] = []

        def note(
            episodes: Sequence[Episode],
            scores: Sequence[Mapping[str, float]],
            found: list = found,
        ) -> None:
            found.append([Answered(*one) for one in zip(episodes, scores, strict=True)])

        batch = samples[start : start + size]
        filler = samples[: size - len(batch)]  # keeps one shape; not counted
        noting = dataclasses.replace(actor, observe=note)
        act(noting, _once([*batch, *filler]), key, group_size=each)
        yield found[: len(batch)]


def _once(batch: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    yield batch
    raise ValueError(
        "`act` asked for a second batch: what is measured is played once, by "
        "programs.acting.act for example, not by dynamic sampling."
    )


def accuracy(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    greedy: bool = True,
) -> float:
    """Mean reward of one response a sample, unscored left out."""
    return _mean(answers(actor, samples, key, greedy=greedy), "overall")


def measurements(answered: Sequence[Sequence[Answered]]) -> dict[str, float]:
    """Means over all responses, under the names of EasyR1.

    `val/reward_score` is what training raises; `val/accuracy` the reward's part of that
    name or, where it has none, the same. `val/<part>_reward` are its other parts, and
    `val/accuracy/<source>` is said where there are several sources. What is unscored is
    in none of them and counted. `val/response_length/clip_ratio` is the share that
    reached no end, `val/ended/<why>` those that a program ended early, if it did, and
    `val/no_room/<model>` those in which another model had no room for what it is asked.
    """
    flat = [one for group in answered for one in group]
    right = "accuracy" if any("accuracy" in one.scores for one in flat) else "overall"
    parts = dict.fromkeys(name for one in flat for name in one.scores)
    lengths = [
        sum(len(turn.tokens) for turn in one.episode.turns if turn.chosen)
        for one in flat
    ]
    by_source: dict[str, list[Sequence[Answered]]] = {}
    for group in answered:
        by_source.setdefault(group[0].episode.sample.source, []).append(group)
    several = by_source if len(by_source) > 1 else {}
    facts = [one.episode.facts for one in flat]
    ends = {name for told in facts for name in told if name.startswith(ENDS)}
    return {
        "val/reward_score": _mean(answered, "overall"),
        "val/accuracy": _mean(answered, right),
        **{
            f"val/{name}_reward": _mean(answered, name)
            for name in parts
            if name not in BOOKS
        },
        **{
            f"val/accuracy/{source}": _mean(groups, right)
            for source, groups in several.items()
        },
        "val/unscored": _mean(answered, "unscored"),
        "val/response_length/mean": float(np.mean(lengths)),
        "val/response_length/clip_ratio": float(
            np.mean([not one.episode.finished for one in flat])
        ),
        **{
            f"val/{name}": float(np.mean([bool(told.get(name)) for told in facts]))
            for name in sorted(ends)
        },
        "val/count": len(answered),
    }


def _mean(answered: Sequence[Sequence[Answered]], name: str) -> float:
    """Of what is there and no NaN; NaN where nothing is."""
    found = [one.scores.get(name, math.nan) for group in answered for one in group]
    known = [value for value in found if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def shuffle_images(samples: Sequence[Sample]) -> list[Sample]:
    """Questions with the pictures of the next sample that has as many, but others.

    A policy that looks then answers another question, and is right by chance only.
    Left out are questions for which there are no such pictures, those without any too.
    """
    alike: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        alike.setdefault(len(sample.images), []).append(place)
    shown: dict[int, Sample] = {}
    for places in alike.values():
        for turn, place in enumerate(places):
            own = samples[place].images
            after = (samples[i].images for i in [*places[turn:], *places[:turn]])
            if other := next((images for images in after if images != own), None):
                shown[place] = dataclasses.replace(samples[place], images=other)
    return [shown[place] for place in sorted(shown)]


def chance(samples: Sequence[Sample]) -> float:
    """sum_a p(a)^2 over the answers a: how often another sample's answer is right."""
    _, counts = np.unique([sample.answer for sample in samples], return_counts=True)
    return float(np.square(counts / len(samples)).sum())


def look_and_shuffle(
    actor: Actor,
    samples: Sequence[Sample],
    key: Key[Array, ""],
    *,
    shuffled: Sequence[Sample] | None = None,
    act: GroupAct = single_turn,
    size: int | None = None,
) -> dict[str, float]:
    """Measurements with the right pictures; accuracy with those of other questions.

    `shuffled` are such questions, `shuffle_images(samples)` if they are not given; NaN
    where there are none.
    """
    others = shuffle_images(samples) if shuffled is None else shuffled
    blind = answers(actor, others, key, act=act, size=size) if others else []
    accuracy = measurements(blind)["val/accuracy"] if blind else math.nan
    return {
        **measurements(answers(actor, samples, key, act=act, size=size)),
        "val/accuracy_shuffled_images": accuracy,
    }
