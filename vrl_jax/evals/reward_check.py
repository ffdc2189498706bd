"""Does a reward pay right answers, and only those? Asked of data before training.

Each row's answer is written as a response and scored beside the answer of another
row and beside empty words. Most reward bugs show there: gold that does not parse, a
frame or a tag that the reward does not read, "None" that equals "None".
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from vrl_jax.rewards.combine import Reward, score_group
from vrl_jax.types import Episode, ImageRef, ImageSize, Sample, Turn

ANSWER = "{answer}"
TEMPLATES = (
    r"\boxed{{answer}}",
    r"<think> thoughts </think> \boxed{{answer}}",
    "<answer> {answer} </answer>",
    "<think> thoughts </think> <answer> {answer} </answer>",
    "<think>\nthoughts\n</think>\n<answer>\n{answer}\n</answer>",
    r"<think> thoughts </think> <answer> \boxed{{answer}} </answer>",
    "```json\n{answer}\n```",
    "Answer: {answer}",
    "{answer}",
)
"""Responses that people ask for; the words around the answer earn nothing alone."""

NOTHING = {"an empty response": "", "a refusal": "I do not know."}
TRIED = 64
"""Rows on which the templates are compared."""


class Finding(NamedTuple):
    """One response that a reward did not score as it should, and why."""

    id: str
    answer: str
    response: str
    score: float
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class RewardCheck:
    """What a reward gives to gold answers, to those of other rows, and to nothing.

    `full` is what counts as full marks. `templates` holds the mean score of gold under
    each of the templates tried, NaN where none could be had.
    """

    rows: int
    template: str
    templates: Mapping[str, float]
    full: float
    gold_mean: float
    shuffled: int
    shuffled_mean: float
    gold_below: Sequence[Finding]
    shuffled_full: Sequence[Finding]
    nothing_full: Sequence[Finding]

    @property
    def suspicious(self) -> bool:
        """Whether anything here should be looked at before training."""
        findings = self.gold_below or self.shuffled_full or self.nothing_full
        return bool(findings) or not self.gold_mean > self.shuffled_mean

    def summary(self, shown: int = 10) -> str:
        """A few lines: the means, and the first rows that offend."""
        lines = [f"response   {self.template!r}"]
        if len(self.templates) > 1:
            lines += [
                f"           {mean:8.3f} mean gold score of {template!r}"
                for template, mean in self.templates.items()
            ]
        lines += [
            f"full marks {self.full:g}",
            f"gold       {self.gold_mean:.3f} mean of {self.rows} rows, "
            f"{len(self.gold_below)} below full marks",
            f"shuffled   {self.shuffled_mean:.3f} mean of {self.shuffled} rows, "
            f"{len(self.shuffled_full)} with full marks",
        ]
        if self.shuffled < self.rows:
            lines.append("           the other rows share the only answer there is")
        for title, findings in (
            ("gold answers below full marks", self.gold_below),
            (
                "answers of other rows with full marks (equal to the row's own in "
                "other words, or a bug)",
                self.shuffled_full,
            ),
            ("full marks for nothing", self.nothing_full),
        ):
            if findings:
                lines.append(f"{title}:")
                lines += [f"  {_line(finding)}" for finding in findings[:shown]]
            if len(findings) > shown:
                lines.append(f"  and {len(findings) - shown} more")
        if not self.gold_mean > self.shuffled_mean:
            lines.append("gold scores no more than answers of other rows")
        lines.append("suspicious" if self.suspicious else "nothing suspicious")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Everything, NaN as null."""
        found = dataclasses.asdict(self) | {"suspicious": self.suspicious}
        for name in ("gold_below", "shuffled_full", "nothing_full"):
            found[name] = [finding._asdict() for finding in getattr(self, name)]
        return _strict(found)


def check_reward(
    reward: Reward,
    samples: Sequence[Sample],
    *,
    template: str | None = None,
    full: float | None = None,
) -> RewardCheck:
    """Scores each row's own answer, another row's, and nothing, as one group.

    `template` is a response with `{answer}` in it; without one, that of `TEMPLATES`
    under which gold scores best is taken. Full marks are the highest score of a gold
    answer unless `full` says otherwise. Lengths are counted in words, and the model is
    taken to see pictures in their own size.
    """
    if template is not None and ANSWER not in template:
        raise ValueError(
            f"a response must hold {ANSWER} where the answer goes, got {template!r}."
        )
    tried = (template,) if template else TEMPLATES
    some = samples[:: max(len(samples) // TRIED, 1)][:TRIED]
    means = {text: _mean(_gold_scores(reward, some, text)) for text in tried}
    best = max(tried, key=lambda text: (_or_least(means[text]), -tried.index(text)))

    others = derangement([sample.answer for sample in samples])
    gold, shuffled, nothing = [], [], []
    for sample, other in zip(samples, others, strict=True):
        responses = [best.replace(ANSWER, sample.answer), *NOTHING.values()]
        if other is not None:
            responses.append(best.replace(ANSWER, samples[other].answer))
        scores, problem = _scores(reward, sample, responses)
        found = [
            Finding(sample.id, sample.answer, response, score, problem)
            for response, score in zip(responses, scores, strict=True)
        ]
        gold.append(found[0])
        nothing += found[1 : 1 + len(NOTHING)]
        shuffled += found[1 + len(NOTHING) :]
    known = [finding.score for finding in gold if not math.isnan(finding.score)]
    marks = max(known, default=math.nan) if full is None else full

    def reaches(finding: Finding) -> bool:
        return finding.score >= marks - 1e-6

    return RewardCheck(
        rows=len(samples),
        template=best,
        templates=means,
        full=marks,
        gold_mean=_mean(known),
        shuffled=len(shuffled),
        shuffled_mean=_mean([f.score for f in shuffled]) if shuffled else -math.inf,
        gold_below=[f for f in gold if not reaches(f)],
        shuffled_full=[f for f in shuffled if reaches(f)],
        nothing_full=[f for f in nothing if reaches(f)],
    )


def derangement(answers: Sequence[str]) -> list[int | None]:
    """For each row a row with another answer; None where all answers are the same.

    Each row is used once, unless one answer fills more than half of them. Answers are
    the same if they differ in white space and case alone.
    """
    plain = [" ".join(answer.split()).casefold() for answer in answers]
    order = sorted(range(len(plain)), key=plain.__getitem__)
    # Equal answers lie together: half a turn leads out of any run shorter than that.
    half = len(order) // 2
    found: list[int | None] = [None] * len(plain)
    for place, row in enumerate(order):
        other = order[(place + half) % len(order)]
        if plain[other] == plain[row]:
            ends = (order[0], order[-1])
            other = next((end for end in ends if plain[end] != plain[row]), None)
        found[row] = other
    return found


def _gold_scores(
    reward: Reward, samples: Sequence[Sample], template: str
) -> list[float]:
    groups = [
        _scores(reward, sample, [template.replace(ANSWER, sample.answer)])
        for sample in samples
    ]
    return [scores[0] for scores, _ in groups]


def _scores(
    reward: Reward, sample: Sample, responses: Sequence[str]
) -> tuple[list[float], str]:
    """NaN where there is no score, and what went wrong if something did."""
    group = [_episode(sample, response) for response in responses]
    try:
        scores = score_group(reward, group)
    except Exception as error:
        return [math.nan] * len(group), f"{type(error).__name__}: {error}"
    return [score["overall"] for score in scores], ""


def _episode(sample: Sample, response: str) -> Episode:
    return Episode(
        sample,
        sample.question,
        (Turn(response, tuple(range(len(response.split())))),),
        finished=True,
        image_sizes=tuple(_size(image) for image in sample.images),
    )


def _mean(scores: Sequence[float]) -> float:
    known = [score for score in scores if not math.isnan(score)]
    return sum(known) / len(known) if known else math.nan


def _or_least(mean: float) -> float:
    return -math.inf if math.isnan(mean) else mean


def _line(finding: Finding) -> str:
    score = "unscored" if math.isnan(finding.score) else f"{finding.score:g}"
    shown = f"{finding.id}: {score} for {finding.response[:80]!r}"
    shown += f", answer {finding.answer[:80]!r}"
    return shown + (f" ({finding.problem})" if finding.problem else "")


def _strict(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size(image: ImageRef) -> ImageSize:
    with Image.open(image if isinstance(image, str) else io.BytesIO(image)) as opened:
        width, height = opened.size
    return ImageSize(height, width, height, width)
