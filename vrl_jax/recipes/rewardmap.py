"""RewardMap: routes on a transit map, paid for every part that is right.

"RewardMap: Tackling Sparse Rewards in Fine-grained Visual Reasoning via Multi-Stage
Reinforcement Learning", Feng et al., 2025, https://arxiv.org/abs/2510.02240; code
https://github.com/fscdc/RewardMap.

    act     y_1..y_G ~ pi_old(. | map, q);  R_i = W (10 correct_i + 0.5 detail_i),
            W = 1, 1.2 or 1.5 by the city + 0.5 for a route with transfers
    score   log pi_ref(y_i | map, q), with an anchor
    credit  A_it = (R_i - mean(R)) / (std(R) + 1e-6)
    loss    clipped surrogate (0.2, 0.2) + weight KL(l_it, l_ref_it), mean over each
            response, then over responses

Easy questions first: a stage is this recipe on one of `stages(samples)`, yes or no,
counting, choices, routes; the code goes through that order once. Its anchor is
near(reference, weight=0.01, divergence=divergences.low_var_kl). The paper's advantage
is `advantages.group_centered`: W is one number in a group, so z-scores cancel it.

A route with T transfers has T + 1 sections, and the code takes 5 from each beyond T,
the last right one too: beyond=0, the default, follows it, beyond=1 does not. Names are
compared without station words, brackets, quotes, blanks and hyphens; the code also
knows other spellings of some stations and two branches of lines. Its layout is ours to
read: "Route Name: ...", "Departure Stop: ...", "Arrival Stop: ...", sections apart by
"--". Clips and the mean are GRPO's; the code's could not be read. Small maps with such
rows: `worlds.transit`.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from vrl_jax import advantages, objectives, reductions
from vrl_jax.engine.reference import Anchor, free
from vrl_jax.programs.single_turn import single_turn
from vrl_jax.rewards.columns import chosen, column
from vrl_jax.rewards.combine import Reward, per_response
from vrl_jax.rewards.parse import last_boxed, read_json
from vrl_jax.training.clipped_recipe import clipped_recipe
from vrl_jax.training.iteration import Recipe
from vrl_jax.types import Episode, Sample

CITIES = {"easy": 1.0, "middle": 1.2, "hard": 1.5}
STAGES = (("TorF1", "TorF2"), ("Counting2", "Counting3"), ("Counting1",), ("planning",))

_PHRASE = re.compile(r"answer(?: is|:)[\s:*]*([^.!?\n*]*)", re.IGNORECASE)
_PARTS = tuple(
    re.compile(rf"{name}\W*:\W*([^\n]+)", re.IGNORECASE)
    for name in ("Route Name", "Departure Stop", "Arrival Stop")
)
_NOISE = re.compile(r"\([^)]*\)|（[^）]*）|\b(?:station|metro)\b|[\s,'\"’‘“”-]")


class Section(NamedTuple):
    """One ride: its line, where one gets on, and off."""

    route: str
    start: str
    end: str


def stages(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The rows of each stage, easy ones first; a stage without rows is left out."""
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(_kind(sample), []).append(sample)
    found = [[s for kind in stage for s in kinds.get(kind, [])] for stage in STAGES]
    return [stage for stage in found if stage]


def map_reward(*, alpha: float = 0.5, beyond: int = 0) -> Reward:
    """W (10 correct + alpha detail); parts `accuracy` and `detail`.

    Rows have the columns `type`, `difficulty_city` and, for routes, `station_1`,
    `station_2`, `question_transfer_count` and `json`, {line: its stops in order}; an
    `answer` must be there for routes too, which is not read, and the map in `images`.
    Only routes have details: see `detail`. A row that lacks something is a ValueError.
    """

    def score(episode: Episode) -> dict[str, float]:
        sample = episode.sample
        kind = _kind(sample)
        city = column(sample, "difficulty_city", str, "how hard its map is")
        weight = chosen(sample, "difficulty_city", city, CITIES)
        if kind != "planning":
            rule = RULES[_kind(sample)]
            right = float(rule(last_answer(episode.text), sample.answer))
            return {"overall": 10 * weight * right, "accuracy": right, "detail": 0.0}
        count = column(sample, "question_transfer_count", (int, float, str), "changes")
        transfers = whole_number(count)
        if transfers is None:
            raise ValueError(f"{sample.id}: {count!r} is no number of transfers.")
        weight += 0.5 * (transfers > 0)
        trip, lines = _trip(sample)
        sections = route_sections(episode.text)
        right = float(arrives(sections, trip, lines))
        partly = detail(sections, trip, lines, transfers=transfers, beyond=beyond)
        overall = weight * (10 * right + alpha * partly)
        return {"overall": overall, "accuracy": right, "detail": partly}

    return per_response(score)


def _kind(sample: Sample) -> str:
    known = {kind: kind for stage in STAGES for kind in stage}
    return chosen(sample, "a type", sample.annotations.get("type"), known)


def whole_number(given: object) -> int | None:
    """Of a number or its text, 12.0 too: tables store whole numbers so."""
    found = re.fullmatch(r"\s*([+-]?\d{1,9})(?:\.0*)?\s*", str(given))
    return int(found.group(1)) if found else None


def last_answer(text: str) -> str:
    """The last box or, without one, what follows "the answer is", in small letters."""
    box = last_boxed(text)
    if box is None:
        found = _PHRASE.findall(text)
        box = found[-1] if found else ""
    return box.strip().lower()


def yes_or_no(given: str, answer: str) -> bool:
    """The row says 1 or 0, true or false, or the word."""
    said = answer.strip().lower()
    number = {"true": 1, "false": 0}.get(said, whole_number(said))
    return given == {1: "yes", 0: "no"}.get(number, said)


def one_of_four(given: str, answer: str) -> bool:
    """Letters a to d are 0 to 3."""
    places = {letter: number for number, letter in enumerate("abcd")}
    wanted = answer.strip().lower()
    return given in places and places[given] == places.get(wanted, whole_number(wanted))


def same_count(given: str, answer: str) -> bool:
    """The same whole number."""
    found = whole_number(given)
    return found is not None and found == whole_number(answer)


RULES: Mapping[str, Callable[[str, str], bool]] = {
    "TorF1": yes_or_no,
    "TorF2": yes_or_no,
    "Counting1": one_of_four,
    "Counting2": same_count,
    "Counting3": same_count,
}


def route_sections(text: str) -> list[Section]:
    """The sections that can be read, in order, of what follows the thoughts."""
    found = []
    for part in re.split(r"-{2,}", text.rpartition("</think>")[2]):
        lines = [pattern.search(part) for pattern in _PARTS]
        if all(lines):
            name, start, end = (line.group(1) for line in lines)
            found.append(Section(line_name(name), plain(start), plain(end)))
    return found


def line_name(name: str) -> str:
    """A line as it is compared: in small letters, whatever is bracketed."""
    return " ".join(name.lower().strip("*`.: ").split())


def plain(name: str) -> str:
    """A stop as it is compared."""
    return _NOISE.sub("", name.lower()).strip("*`.:")


def _trip(sample: Sample) -> tuple[tuple[str, str], dict[str, list[str]]]:
    """Where from and where to, and the stops of each line."""
    ends = tuple(
        plain(column(sample, name, str, "a stop"))
        for name in ("station_1", "station_2")
    )
    given: Any = sample.annotations.get("json")
    given = read_json(given) if isinstance(given, str) else given
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            f"{sample.id} needs the column 'json', the stops of each line; got "
            f"{str(given)[:80]!r}."
        )
    # A struct of parquet has every row's lines, empty where they are another map's.
    known = {name: stops for name, stops in given.items() if stops}
    lines = {line_name(n): [plain(str(s)) for s in known[n]] for n in known}
    return ends, lines


def arrives(
    sections: Sequence[Section],
    trip: tuple[str, str],
    lines: Mapping[str, Sequence[str]],
) -> bool:
    """From one end to the other, by lines that serve their stops, without a gap.

    Which way a line runs is not looked at.
    """
    if not _meets(sections, trip):
        return False
    rides = all(_serves(section, lines) for section in sections)
    pairs = itertools.pairwise(sections)
    return rides and all(one.end == other.start for one, other in pairs)


def detail(
    sections: Sequence[Section],
    trip: tuple[str, str],
    lines: Mapping[str, Sequence[str]],
    *,
    transfers: int,
    beyond: int = 0,
) -> float:
    """What the parts of a route earn, at most 10; 0 unless both ends are right.

    2; of each section: -5 beyond the first `transfers + beyond`; +3 for a line that
    there is or, where nothing is to be changed, +4 for the first line that serves both
    ends; +1, within those, for its stops and a change that fits the next section.
    """
    if not _meets(sections, trip):
        return 0.0
    limit, earned = transfers + beyond, 2.0
    direct = next((n for n, stops in lines.items() if {*trip} <= {*stops}), None)
    for number, section in enumerate(sections, start=1):
        earned -= 5 * (number > limit)
        if transfers:
            earned += 3 * (section.route in lines)
        else:
            earned += 4 * (section.route == direct)
        changes = number < len(sections) and section.end == sections[number].start
        earned += changes and _serves(section, lines) and number <= limit
    return min(earned, 10.0)


def _meets(sections: Sequence[Section], trip: tuple[str, str]) -> bool:
    return bool(sections) and (sections[0].start, sections[-1].end) == trip


def _serves(section: Section, lines: Mapping[str, Sequence[str]]) -> bool:
    return {section.start, section.end} <= {*lines.get(section.route, ())}


def rewardmap(
    *,
    group_size: int = 4,
    advantage: Callable[..., Float[Array, " E"]] = advantages.group_zscore,
    anchor: Anchor = free,
    clip: float = 0.2,
) -> Recipe:
    """The actor's reward is `map_reward()`."""
    act = functools.partial(single_turn, group_size=group_size)
    return clipped_recipe(
        act,
        advantage=functools.partial(advantage, group_size=group_size),
        surrogate=objectives.clipped_surrogate,
        reduction=reductions.sequence_mean,
        anchor=anchor,
        clip_low=clip,
        clip_high=clip,
    )
