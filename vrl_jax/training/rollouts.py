"""What the policy wrote, kept for people to read: JSON lines beside the pictures."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrl_jax.training import processes
from vrl_jax.training.files import write_lines
from vrl_jax.types import Episode, ImageRef, Turn

Group = tuple[Sequence[Episode], Sequence[Mapping[str, float]]]
"""The episodes of one prompt and their scores."""


def write_rollouts(
    folder: Path, phase: str, step: int, groups: Sequence[Group]
) -> Path:
    """Writes `rollouts/<phase>_<step>.jsonl`, a line a response.

    Encoded pictures lie in `rollouts/images`, named by their content; those that came
    as paths are named by their path. An episode of several turns has them all, with
    what was said between, also where the program gave the rewards only what the policy
    wrote. Of several processes the first one writes.
    """
    target = folder / "rollouts"
    file = target / f"{phase.replace(' ', '_')}_{step}.jsonl"
    if not processes.leads():
        return file
    (target / "images").mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "step": step,
            "id": episode.sample.id,
            "data_source": episode.sample.source,
            "prompt": episode.prompt,
            "images": [_kept(image, target) for image in episode.sample.images],
            "response": episode.text,
            **_several(episode, target),
            "response_length": sum(len(t.tokens) for t in episode.turns if t.chosen),
            "finished": episode.finished,
            "ground_truth": episode.sample.answer,
            "reward": _number(score["overall"]),
            "reward_details": {key: _number(value) for key, value in score.items()},
        }
        for episodes, scores in groups
        for episode, score in zip(episodes, scores, strict=True)
    ]
    write_lines(file, rows)
    return file


def _several(episode: Episode, target: Path) -> dict[str, Any]:
    """The turns and what was noted of the whole, of an episode of more than one."""
    turns = turns_of(episode, functools.partial(_kept, target=target))
    facts = noted(episode.facts).items()
    known = {name: fact for name, fact in facts if fact is not None}
    return {**turns, **({"facts": known} if turns and known else {})}


def turns_of(episode: Episode, kept: Callable[[ImageRef], str]) -> dict[str, Any]:
    """`turns` of an episode of more than one, with what was said between them."""
    turns = list(with_told(episode.turns))
    return {} if len(turns) < 2 else {"turns": [turn_row(turn, kept) for turn in turns]}


def turn_row(turn: Turn, kept: Callable[[ImageRef], str]) -> dict[str, Any]:
    """A turn as a line has it; `kept` says what stands for a picture."""
    return {
        "text": turn.text,
        "chosen": turn.chosen,
        "images": [kept(image) for image in turn.images],
        **({"facts": noted(turn.facts)} if turn.facts else {}),
    }


def with_told(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Before each turn what it was told, unless the program's own turns tell that."""
    tells = any(not turn.chosen and turn.number is None for turn in turns)
    for turn in turns:
        for told in () if tells else turn.told:
            yield Turn(told.text, (), chosen=False, images=told.images)
        yield turn


def noted(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Numpy's numbers and arrays as plain ones; what JSON lacks, in Python's words.

    None is what is not finite.
    """

    def shown(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else repr(value)

    return json.loads(
        json.dumps(dict(facts), default=shown), parse_constant=lambda name: None
    )


def _number(value: float) -> float | None:
    """null for NaN, an unscored response: every reader takes it."""
    return None if math.isnan(value) else value


def _kept(image: ImageRef, target: Path) -> str:
    if isinstance(image, str):
        return image
    name = f"images/{hashlib.sha256(image).hexdigest()[:16]}"
    (target / name).write_bytes(image)
    return name
