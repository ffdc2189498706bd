"""A planner sets subtasks, a controller acts until one is done, an environment answers.

Both are the policy, told apart by what they are asked. The planner's conversation grows
over the episode; the controller's begins anew with each subtask and knows nothing else.
What was played becomes rows to learn from, of either kind: `trajectories`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from vrl_jax.engine.conversation import Ask, Context, user
from vrl_jax.engine.desk import OutOfRoom, TooManyAsks
from vrl_jax.engine.episode import Outcome, Steps
from vrl_jax.engine.processing import question
from vrl_jax.programs.recital import demonstrated
from vrl_jax.rewards.columns import column
from vrl_jax.types import (
    PLACEHOLDER,
    Episode,
    ImageRef,
    Message,
    Sample,
    Turn,
    literal,
    wording,
)

PLAN, ACT = "plan", "act"
NOTHING = "None"
"""What is done where an action cannot be read."""


class Seen(NamedTuple):
    """What an environment shows, what the action before earned, and if it is over."""

    text: str
    images: tuple[ImageRef, ...] = ()
    reward: float = 0.0
    done: bool = False


Environment = Callable[[Sample], Generator[Seen, str, None]]
"""Yields what is seen first; is sent an action and yields what comes of it, until it is
done. Of an action that it does not know, it says so as text. What it pays in an episode
should sum to 1 at most."""


class Words(NamedTuple):
    """What is said to planner and controller. Pictures stand before what is seen."""

    plan: str = """\
You plan. Say in a few words the next thing that should be done for this task: {task}"""
    state: str = "Done last: {actions}. Seen now: {seen}"
    act: str = """\
You act. Do this: {subtask}. Each time give one action, then "; True" if it is done \
with that, or "; False"."""
    seen: str = "Seen: {seen}"


WORDS = Words()


Exchange = tuple[Turn, Turn]
"""What was shown, and what was said to it."""


def read_action(text: str) -> tuple[str, bool] | None:
    """("open the door", True) of "open the door; True"; None of anything else."""
    action, _, flag = text.rpartition(";")
    action, flag = action.strip(), flag.strip().lower()
    return (action, flag == "true") if action and flag in ("true", "false") else None


def plan_and_act(
    sample: Sample,
    *,
    environment: Environment,
    words: Words = WORDS,
    steps: int = 50,
    subtask_tokens: int = 32,
    action_tokens: int = 16,
) -> Steps:
    """At most `steps` actions; a subtask ends where the controller says so.

    What cannot be read as an action is the action "None", and no end of the subtask.
    Facts are `reward`, all that was paid, and the numbers of `subtasks`, `actions` and
    actions that were `unread`. What is returned is as `trajectories` reads it.
    """
    *system, _ = question(sample)
    world, turns, done = environment(sample), list[Turn](), list[str]()
    facts = {"reward": 0.0, "subtasks": 0.0, "actions": 0.0, "unread": 0.0}
    plans: Context = tuple(system)
    opening = words.plan.format(task=literal(wording(sample.question))) + "\n\n"
    try:
        seen = next(world)
        while not seen.done and facts["actions"] < steps:
            actions = ", ".join(map(literal, done)) or NOTHING
            state = words.state.format(actions=actions, seen=literal(seen.text))
            plans = (*plans, _shown(opening + state, seen))
            subtask = yield Ask(plans, max_new_tokens=subtask_tokens)
            about = {"level": PLAN, "subtask": int(facts["subtasks"])}
            turns += [
                _told(plans[-1], about),
                dataclasses.replace(subtask, facts=about),
            ]
            plans, opening, done = (*plans, subtask), "", []
            facts["subtasks"] += 1
            acts: Context = tuple(system)
            order = words.act.format(subtask=literal(subtask.text)) + "\n\n"
            finished = False
            while not (finished or seen.done) and facts["actions"] < steps:
                text = order + words.seen.format(seen=literal(seen.text))
                acts = (*acts, _shown(text, seen))
                said = yield Ask(acts, max_new_tokens=action_tokens)
                read = read_action(said.text)
                facts["unread"] += read is None
                action, finished = read or (NOTHING, False)
                seen = world.send(action)
                facts["actions"] += 1
                facts["reward"] += seen.reward
                now = {"level": ACT, "reward": seen.reward, "finished": finished}
                now = {**about, **now}
                turns += [_told(acts[-1], now), dataclasses.replace(said, facts=now)]
                acts, order = (*acts, said), ""
                done.append(action)
    except (OutOfRoom, TooManyAsks) as error:
        facts[f"ended/{type(error).__name__}"] = 1.0
    finally:
        world.close()
    return Outcome(turns, facts)


def trajectories(episode: Episode) -> list[Sample]:
    """The planner's row of an episode, then the controller's, one a subtask.

    Rows for `dialogue`: `asks` and their answers as `demonstration`. The planner's has
    `rewards`, what was paid in each subtask; `finished` says of the controller's
    whether it ended with the subtask done. The source says whose they are. An episode
    in which nothing was done, or that broke off by an error, has none.
    """
    if any("level" not in turn.facts for turn in episode.turns):
        return []
    pairs = [*zip(episode.turns[::2], episode.turns[1::2], strict=True)]
    plans = [pair for pair in pairs if pair[1].facts["level"] == PLAN]
    acts: list[list[Exchange]] = [[] for _ in plans]
    for pair in pairs:
        if pair[1].facts["level"] == ACT:
            acts[pair[1].facts["subtask"]].append(pair)
    paid = [sum(said.facts["reward"] for _, said in of_one) for of_one in acts]
    rows = [_row(episode.sample, PLAN, plans, rewards=paid)] if plans else []
    return rows + [
        _row(
            episode.sample,
            f"{ACT}-{number}",
            of_one,
            finished=of_one[-1][1].facts["finished"],
        )
        for number, of_one in enumerate(acts)
        if of_one
    ]


def finished(row: Sample) -> Sample:
    """A controller's row with rewards: 1 for its last action if it finished, else 0.

    A planner's, which has rewards, stays as it is.
    """
    if row.annotations.get("rewards") is not None:
        return row
    done = float(column(row, "finished", bool, "whether the subtask was done"))
    rewards = [*[0.0] * (len(demonstrated(row)) - 1), done]
    return dataclasses.replace(row, annotations={**row.annotations, "rewards": rewards})


def _shown(text: str, seen: Seen) -> Message:
    return user(PLACEHOLDER * len(seen.images) + text, seen.images)


def _told(message: Message, facts: Mapping[str, Any]) -> Turn:
    return Turn(message.text, (), chosen=False, images=message.images, facts=facts)


def _row(
    sample: Sample, name: str, pairs: Sequence[Exchange], **columns: Any
) -> Sample:
    asks = [told.text for told, _ in pairs]
    told = {name: sample.annotations.get(name) for name in ("system", "tools_message")}
    return Sample(
        id=f"{sample.id}/{name}",
        source=f"{sample.source}/{name.split('-')[0]}",
        question="\n\n".join(asks),
        images=tuple(itertools.chain(*(told.images for told, _ in pairs))),
        answer=pairs[-1][1].text,
        annotations={
            **{name: text for name, text in told.items() if text},
            "asks": asks,
            "demonstration": [said.text for _, said in pairs],
            **columns,
        },
    )
