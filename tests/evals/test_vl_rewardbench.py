"""VL-RewardBench: orders, verdicts, votes and scores by hand; who can be a judge."""

import dataclasses
import math
import time

import jax
import pytest

from vrl_jax.engine.judging import as_sample
from vrl_jax.evals import held_out, vl_rewardbench
from vrl_jax.evals.benchmark import row
from vrl_jax.evals.vl_rewardbench import (
    Cast,
    accuracies,
    agreement,
    calls,
    label,
    read_pairs,
    strict,
    summary,
    verdict,
    vote,
    votes_of,
    votes_written,
)
from vrl_jax.rewards.named import named_reward
from vrl_jax.training.data import read_samples
from vrl_jax.types import Episode, Turn
from vrl_jax.worlds.writing import write_parquet

from ..fixtures import small

SAYS = "Overall Judgment: Answer {} is better."
ROW = {
    "id": "RLAIF-V-7",
    "query": "<image>\nWhat is it?",
    "image": {"bytes": small.png(1, 28, 28), "path": None},
    "response": ["a cat", "a dog"],
    "human_ranking": [0, 1],
}


def pairs(*changes):
    return read_pairs([{**ROW, **change} for change in changes or [{}]])[0]


def test_a_row_is_a_pair_and_is_asked_in_both_orders():
    (pair,) = pairs()
    assert (pair.source, pair.answer) == ("hallucination", "a cat")
    asked = calls([pair], votes=40, seed=3)
    assert len({call.id for call in asked}) == 40
    assert 8 < sum(call.annotations["swapped"] for call in asked) < 32
    for call in asked:
        swapped = call.annotations["swapped"]
        assert call.answer == ("2" if swapped else "1")
        first, second = ("a dog", "a cat") if swapped else ("a cat", "a dog")
        assert f"Answer 1: {first}\n\nAnswer 2: {second}\n" in call.question
        # Text first, then the picture; the query's own placeholder is gone.
        assert call.question.count("<image>") == 1
        assert call.question.endswith("\n<image>")


def test_orders_depend_on_pair_and_seed_alone():
    one, other = pairs({}, {"id": "mmmu_1"})

    def orders(given, **how):
        return [call.annotations["swapped"] for call in calls(given, votes=20, **how)]

    assert orders([one, other])[20:] == orders([other]) != orders([one])
    assert orders([one]) == orders([one], seed=0) != orders([one], seed=1)
    assert orders([one])[:5] == [c.annotations["swapped"] for c in calls([one])]


def test_braces_and_placeholders_of_answers_are_text():
    (pair,) = pairs({"response": ["{second} <image>", "b"]})
    for call in calls([pair]):
        assert r"{second} \<image>" in call.question
        assert call.question.count("<image>") == 2  # one of them escaped
        (message,) = vl_rewardbench.messages(call)
        kinds = [part["type"] for part in message["content"]]
        assert kinds == ["text", "image_url"]
        assert "{second} <image>" in message["content"][0]["text"]


def test_a_model_judge_reads_the_same_words():
    (call,) = calls(pairs(), votes=1)
    read = as_sample(small.actor().processor, vl_rewardbench.messages(call))
    assert read.question == call.question and len(read.images) == 1


def test_groups_are_read_off_ids():
    names = {
        "wildvision-battle-1": "general",
        "svit-conversation-3": "general",
        "hallucination_pair-2": "hallucination",
        "RLHF-V-9": "hallucination",
        "mathverse_12": "reasoning",
        "mmmu-pro_4": "reasoning",
    }
    assert {n: vl_rewardbench.group_of(n) for n in names} == names


def test_a_pair_that_comes_again_in_another_order_is_told():
    rows = [
        ROW,
        {**ROW, "response": ["a dog", "a cat"], "human_ranking": [1, 0]},
        {**ROW, "query": "Which?"},
    ]
    found, repeated = read_pairs(rows)
    assert len(found) == 2 and repeated == ["RLAIF-V-7"]
    assert {pair.answer for pair in found} == {"a cat"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": None}, r"row 0 needs the column 'id'"),
        ({"query": 3}, r"RLAIF-V-7 needs the column 'query'"),
        ({"response": ["one"]}, r"RLAIF-V-7 needs two texts in 'response'"),
        ({"human_ranking": [0, 0]}, r"RLAIF-V-7 needs \[0, 1\] in 'human_ranking'"),
        ({"image": "nowhere.png"}, r"RLAIF-V-7 needs a picture in 'image'"),
        ({"image": None}, r"RLAIF-V-7 needs a picture.*Read the rows with pyarrow"),
    ],
)
def test_a_row_that_lacks_something_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        pairs(change)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (SAYS.format(1), 1),
        ("**Overall Judgment**:\n\n**Answer 2** is the slightly better.", 2),
        ("therefore, all in all,\nanswer 1 is slightly better", 1),
        # The last behind the first cue; what stands before it is not read.
        ("Answer 1 is better. Therefore Answer 1 is better, no, Answer 2 is better", 2),
        ("Answer 1 is better.", None),
        ("Overall Judgment: both are good.", None),
        ("Overall Judgment: Answer 3 is better.", None),
        (f"Overall Judgment: Answer {'9' * 5000} is better.", None),
        ("", None),
    ],
)
def test_verdicts_are_read(reply, found):
    assert verdict(reply) == found


def test_verdicts_take_no_longer_than_the_text():
    for piece in ("Answer ", "Therefore ", "Answer 1 is ", "Answer", " ", "1"):
        begin = time.perf_counter()
        assert verdict("Therefore" + piece * (200_000 // len(piece))) is None
        assert time.perf_counter() - begin < 2


def test_votes_by_hand():
    """The sheet's swap check: first preferred, second shown first, 2 agrees."""
    (call,) = [c for c in calls(pairs(), votes=9) if c.annotations["swapped"]][:1]
    assert vote(verdict(SAYS.format(2)), call.answer) == "agree"
    assert vote(verdict(SAYS.format(1)), call.answer) == "reject"
    assert vote(None, "1") == vote(math.nan, "1") == "no verdict"


def cast():
    """The worked example of six pairs with 5 votes each."""
    table = {
        "g1": ("general", (3, 2, 0)),
        "g2": ("general", (2, 3, 0)),
        "h1": ("hallucination", (5, 0, 0)),
        "h2": ("hallucination", (1, 4, 0)),
        "h3": ("hallucination", (2, 2, 1)),
        "r1": ("reasoning", (4, 1, 0)),
    }
    return [
        Cast(pair, group, said)
        for pair, (group, counts) in table.items()
        for said, count in zip(("agree", "reject", "no verdict"), counts, strict=True)
        for _ in range(count)
    ]


def test_the_worked_example():
    found = summary(cast())
    assert (found["general"], found["hallucination"], found["reasoning"]) == (
        *(0.5, 0.5, 1),
    )
    assert found["overall"] == pytest.approx(0.6)
    assert found["macro"] == pytest.approx(0.666667, abs=1e-6)
    assert found["strict/hallucination"] == pytest.approx(1 / 3)
    assert found["strict/overall"] == pytest.approx(0.5)
    assert found["strict/macro"] == pytest.approx(0.611111, abs=1e-6)
    assert (found["pairs"], found["undecided"], found["no_verdict"]) == (6, 1, 0)
    assert found["fewest_votes"] == 5


def test_fewer_votes_are_the_first_ones():
    first = summary(cast(), votes=1)
    assert first["overall"] == 1 and first["fewest_votes"] == 1


def test_the_reported_macro_is_the_mean_of_groups():
    """GPT-4o's row of the leaderboard: 49.1, 67.6 and 70.5 make 62.4."""
    labels = [
        (group, "agree" if number < right else "reject")
        for group, right in (
            *(("general", 491), ("hallucination", 676), ("reasoning", 705)),
        )
        for number in range(1000)
    ]
    assert accuracies(labels)["macro"] == pytest.approx(0.624, abs=5e-4)


def test_labels_need_more_than_half():
    assert label(["agree", "reject"]) == "undecided"
    assert label(["agree", "reject", "no verdict"]) == "undecided"
    assert label(["no verdict", "agree", "no verdict"]) == "no verdict"


def test_what_cannot_be_told_is_none():
    labels = [("general", "agree"), ("reasoning", "undecided")]
    found = accuracies(labels)
    assert (found["reasoning"], found["macro"], found["overall"]) == (None, None, 1)
    assert accuracies(strict(labels))["macro"] == 0.5
    with pytest.raises(ValueError, match="no vote to sum up"):
        summary([])


class Fake:
    """A judge that likes cats, or the first answer, or says nothing."""

    def __init__(self, choose):
        self.choose = choose

    def verdicts(self, questions):
        return [
            self.choose(question[0]["content"][0]["text"]) for question in questions
        ]


def test_a_judge_that_answers_questions_votes():
    given = pairs({}, {"id": "mmmu_1", "response": ["a dog", "a cat"]})
    likes_cats = Fake(lambda text: 1.0 if "Answer 1: a cat" in text else 2.0)
    found = summary(votes_of(likes_cats, given))
    # The second pair prefers the dog.
    assert (found["hallucination"], found["reasoning"]) == (1, 0)
    silent = summary(votes_of(Fake(lambda text: math.nan), given))
    assert silent["no_verdict"] == 2 and silent["overall"] is None
    always_first = votes_of(Fake(lambda text: 1.0), given, votes=200)
    agreed = sum(one.vote == "agree" for one in always_first) / 400
    assert 0.4 < agreed < 0.6


def test_a_policy_is_a_judge():
    """Its words are read, as they stand in the lines of an evaluation."""
    actor = dataclasses.replace(
        small.chain_actor(), reward=agreement, prompts_per_pass=8
    )
    actor = dataclasses.replace(
        actor, processor=small.with_room(actor.processor, prompt_tokens=(1024,))
    )
    asked = calls(pairs(), votes=3)
    told = held_out.answers(actor, asked, jax.random.key(0), greedy=False)
    lines = [row(one, 0) for (one,) in told]
    assert [line["meta"]["scores"]["no_verdict"] for line in lines] == [1] * 3
    assert summary(votes_written(lines))["no_verdict"] == 1
    for line in lines:
        line["response"] = SAYS.format(line["answer"])
    assert summary(votes_written(lines))["hallucination"] == 1


def test_the_reward_pays_the_preferred_answer():
    (call,) = calls(pairs(), votes=1)
    other = "2" if call.answer == "1" else "1"
    episodes = [
        Episode(call, "", (Turn(text, ()),), finished=True)
        for text in (SAYS.format(call.answer), SAYS.format(other), "Both are fine.")
    ]
    assert [tuple(score.values()) for score in agreement(episodes)] == [
        (1, 1, 0),
        (-1, 0, 0),
        (-1, 0, 1),
    ]


def test_the_command_reads_calls_and_finds_the_reward(tmp_path):
    asked = calls(pairs({}, {"id": "mmmu_1"}), votes=2)
    read, report = read_samples(write_parquet(asked, tmp_path / "calls.parquet"))
    assert not report.dropped and read == asked
    with named_reward(f"{vl_rewardbench.__file__}:agreement") as reward:
        text = SAYS.format(read[0].answer)
        episode = Episode(read[0], "", (Turn(text, ()),), finished=True)
        assert reward([episode])[0]["accuracy"] == 1
