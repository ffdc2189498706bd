"""Which tokens depend on the picture, measured on a trained policy."""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key
from PIL import Image, ImageOps

from vrl_jax import perception
from vrl_jax.engine.actor import Actor, View, look
from vrl_jax.models.sharding import on_host
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.training.rollouts import turn_row, with_told
from vrl_jax.types import Episode, ImageRef, Rollout, Sample

Kinds = Callable[[Sequence[str]], Sequence[str | None]]
"""The tokens of a response -> what each is: "seen", "derived", or None."""


LARGEST = 560
"""Pixels along a side of a picture in the report."""


def unmarked(tokens: Sequence[str]) -> list[None]:
    """The kinds of tokens of which nothing is known."""
    return [None] * len(tokens)


class Measured(NamedTuple):
    """Responses with the dependency of each token, averaged over several views.

    `episodes` say what was told between the turns of each.
    """

    rollout: Rollout
    dependency: Float[np.ndarray, "B T"]
    episodes: Sequence[Episode] = ()


def measure(
    actor: Actor,
    samples: Sequence[Sample],
    view: View,
    key: Key[Array, ""],
    *,
    draws: int = 4,
    act: Callable[..., Rollout] = single_turn,
) -> Measured:
    """VPPO's score of each token of one sampled response a sample.

    The mean over `draws` perturbed views: one view may happen to spare what matters. Of
    a conversation, each view is of every picture that a token could see: those of the
    prompt and those between the turns before it, each picture with a draw of its own,
    also where a tool shows one again. What was told in words stays, even if it was read
    off a picture, and what is not the policy's own is 0. `ValueError` where `act` plays
    several conversations an episode.
    """
    play_key, view_key = jax.random.split(key)
    episodes: list[Episode] = []
    noting = dataclasses.replace(actor, observe=lambda group, _: episodes.extend(group))
    rollout = act(noting, iter([samples]), play_key, group_size=1)
    if rollout.episode is not None:
        raise ValueError(
            "dependency is measured of one conversation an episode, and `act` has "
            f"rows={len(rollout.tokens) // len(episodes)}: leave it at 1, and ask with "
            "trained=False what is not to be measured."
        )
    scores = []
    for draw in range(draws):
        shown = rollout.shown
        if shown is not None:
            between = look(view, jax.random.fold_in(view_key, draws + draw), shown)
            shown = dataclasses.replace(shown, images=between)
        seen = actor.add_logprobs(
            dataclasses.replace(rollout, shown=shown),
            "view",
            view,
            jax.random.fold_in(view_key, draw),
        )
        scores.append(
            perception.sampled_k3(
                seen.old_logprobs, seen.extra_logprobs["view"], seen.mask
            )
        )
    rollout, scores = on_host((rollout, scores))
    return Measured(rollout, np.mean(scores, axis=0), episodes)


def token_texts(actor: Actor, rollout: Rollout) -> list[list[str]]:
    """The tokens of each response, one string each."""
    decode = actor.processor.tokenizer.decode
    rows = zip(np.asarray(rollout.tokens), np.asarray(rollout.mask), strict=True)
    return [[decode([token]) for token in tokens[mask]] for tokens, mask in rows]


def by_kind(actor: Actor, measured: Measured, kinds: Kinds) -> dict[str, Any]:
    """Mean dependency and number of the tokens of each kind."""
    values: dict[str, list[float]] = {}
    texts = token_texts(actor, measured.rollout)
    masks = np.asarray(measured.rollout.mask)
    for tokens, mask, scores in zip(texts, masks, measured.dependency, strict=True):
        for kind, value in zip(kinds(tokens), scores[mask], strict=True):
            if kind is not None:
                values.setdefault(kind, []).append(float(value))
    return {
        kind: {"mean": float(np.mean(found)), "count": len(found)}
        for kind, found in values.items()
    }


def example_rows(
    actor: Actor,
    samples: Sequence[Sample],
    measured: Measured,
    kinds: Kinds,
) -> list[dict[str, Any]]:
    """What the report shows of each response: picture, words, and their shades.

    A conversation's line has its `turns` too, as a line of `rollouts/` has them, with
    pictures as PNG in base64, and with the `tokens` that the policy drew in each.
    """
    logprobs = np.asarray(measured.rollout.old_logprobs)
    rows = []
    for row, (sample, texts) in enumerate(
        zip(samples, token_texts(actor, measured.rollout), strict=True)
    ):
        columns = np.flatnonzero(measured.rollout.mask[row])
        marked = zip(columns, texts, kinds(texts), strict=True)
        tokens = {
            int(column): {
                "text": text,
                "kind": kind,
                "logprob": float(logprobs[row, column]),
                "dependency": float(measured.dependency[row, column]),
            }
            for column, text, kind in marked
        }
        rows.append(
            {
                "id": sample.id,
                "question": sample.question,
                "image_png": _shown(sample.images[0]) if sample.images else None,
                "answer": sample.answer,
                "response": "".join(texts),
                "reward": float(measured.rollout.rewards[row]),
                "tokens": [*tokens.values()],
                **_turns(measured, row, tokens),
            }
        )
    return rows


def _turns(
    measured: Measured, row: int, tokens: Mapping[int, dict[str, Any]]
) -> dict[str, Any]:
    """Those of a conversation; `tokens` are the row's own, by their column."""
    episode = measured.episodes[row : row + 1]
    turns = [turn for one in episode for turn in with_told(one.turns)]
    if len(turns) < 2:
        return {}
    start = int(np.sum(measured.rollout.prompts.mask[row]))
    ids = np.asarray(measured.rollout.tokens[row])
    written = []
    for turn in turns:
        drawn = turn.tokens[turn.given :] if turn.chosen else ()
        columns = (turn.read - start + place for place in range(len(drawn)))
        own = [column for column in columns if column in tokens]
        # An answer that is not trained stands in no row and was not measured.
        there = tuple(ids[own]) == drawn
        measures = [tokens[column] for column in own] if there else []
        written.append({**turn_row(turn, _shown), "tokens": measures})
    return {"turns": written}


def _shown(image: ImageRef) -> str:
    """In base64, a PNG of at most `LARGEST` pixels a side; a small PNG as it is."""
    return base64.b64encode(_png(image)).decode()


def _png(image: ImageRef) -> bytes:
    with Image.open(image if isinstance(image, str) else io.BytesIO(image)) as picture:
        if picture.format == "PNG" and max(picture.size) <= LARGEST:
            return image if isinstance(image, bytes) else Path(image).read_bytes()
        picture = ImageOps.exif_transpose(picture).convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()
