"""How to read each metric: the text of the report beside the curves."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Group(NamedTuple):
    """Curves that are read together.

    `known` explains metrics and orders them; `prefixes` claims the others.
    """

    title: str
    introduction: str
    known: Mapping[str, str]
    prefixes: tuple[str, ...]


GROUPS = (
    Group(
        "Supervised cold start",
        "Before reinforcement learning the policy imitates correct responses, so that "
        "some of its samples earn a reward at all.",
        {
            "sft/loss": "Mean negative log-probability of the reference responses, in "
            "nats a token. It should fall, and need not reach 0.",
            "sft/accuracy": "Share of correct answers during the supervised steps.",
        },
        ("sft/",),
    ),
    Group(
        "Reward",
        "What the policy is trained for, measured on the responses it sampled.",
        {
            "critic/score/mean": "Mean reward of the step's responses: the number that "
            "training raises.",
            "reward/accuracy": "Share of sampled responses with the right answer.",
            "reward/format": "Share of responses in the requested form. If it rises "
            "alone, the policy has learned the form and not the task.",
            "critic/vf_explained_var": "How much of the returns a critic foresaw: 1 is "
            "all of it, 0 no more than their mean. Below 0 at first, then it rises.",
            "critic/vf_loss": "The critic's error: half the square of value less "
            "return.",
            "critic/lr": "The critic's learning rate, where it has one of its own.",
            "critic/vf_clipfrac": "Share of tokens whose value left its band. 0 is "
            "normal with one update a batch.",
            "groups/zero_variance": "Share of questions whose responses all earned the "
            "same reward; they teach nothing. Near 1 with a flat reward, the data "
            "is too easy or too hard.",
            "groups/all_right": "Share of questions that every response solved.",
            "groups/all_wrong": "Share of questions that no response solved.",
            "rewards/margins": "How much more the policy prefers the chosen response "
            "than the reference does, in nats.",
            "rewards/accuracies": "Share of pairs in which it does so at all.",
            "logps/chosen": "Mean log-probability of whole chosen responses, in nats. "
            "The margin may grow while it falls: then the rejected ones fall faster.",
        },
        ("reward/", "rewards/", "logps/", "critic/", "groups/"),
    ),
    Group(
        "Response length",
        "Counted in tokens that the policy chose.",
        {
            "response_length/mean": "Growth is only good news if the reward grows too.",
            "response_length/clip_ratio": "Share of responses cut at the length limit. "
            "They never reach their answer: above a few percent, raise the limit.",
        },
        ("response_length/", "prompt_length/"),
    ),
    Group(
        "Policy",
        "Whether the updates are healthy. Several of these look wrong when all is "
        "well: with one update for each batch of samples the loss stays near 0 and "
        "nothing is clipped.",
        {
            "actor/pg_loss": "Near 0 is normal: advantages nearly cancel within a "
            "group while the ratio is 1. Its gradient teaches, its value does not.",
            "actor/entropy": "Uncertainty over the next token, in nats, over the whole "
            "vocabulary. A slow fall is learning; a sudden fall to 0 ends exploration.",
            "actor/grad_norm": "Before clipping. Spikes that come more and more often "
            "call for a lower learning rate.",
            "actor/pg_clipfrac_higher": "Share of tokens stopped at the upper bound of "
            "the ratio. 0 is normal with one update a batch.",
            "actor/pg_clipfrac_lower": "The same at the lower bound. 0 is normal with "
            "one update a batch.",
            "actor/ppo_kl": "How far the policy moved from the one that sampled. 0 is "
            "normal with one update a batch.",
            "actor/kl_prcp": "How far the policy is from itself with blackened "
            "pictures. A sudden fall with the reward: the term was gamed, lower gamma.",
            "actor/kl_loss": "How far the policy is from the reference, before its "
            "weight. A steep rise: the reference has stopped holding it.",
            "actor/expert_probability": "What the policy gives to the expert's tokens.",
            "actor/lr": "Learning rate.",
            "training/logprob_gap": "Difference between the log-probabilities of the "
            "sampler and of the learner. It should stay at rounding error: growth is a "
            "fault in the code, not learning.",
            "training/rollout_probs_diff_mean": "The same between probabilities, under "
            "the name that verl has for it.",
            "training/rollout_probs_diff_max": "Its largest value. One token far off, "
            "with a small mean, is a sampler that treats that token otherwise.",
            "training/rollout_is_mean": "Mean weight of learner over sampler: 1, where "
            "both are the same policy.",
            "training/rollout_is_eff_sample_size": "What share of the tokens the "
            "weights leave: 1 where all weigh the same.",
        },
        ("actor/", "training/"),
    ),
    Group(
        "Perception",
        "How much the sampled tokens depend on the picture.",
        {
            "perception/dependency_mean": "Mean visual dependency over all tokens. If "
            "it falls to 0 while the reward rises, the policy is guessing from text.",
            "perception/dependency_kept": "Over the tokens that received a gradient.",
            "perception/dependency_dropped": "Over the tokens that received none. It "
            "should lie far below the kept ones.",
            "perception/saturated": "Share of tokens whose dependency is at its bound, "
            "10; their order is arbitrary.",
            "perception/opposed": "Share of tokens that are more likely without the "
            "picture. The score ranks the worst of them highest.",
            "perception/kept_of_top_entropy": "Share of the most uncertain fifth that "
            "received a gradient. At the filter's own share the two choose alike by "
            "chance only.",
            "perception/reward_correlation": "Of a response's dependency with its "
            "reward: above 0, those that look are right more often.",
            "perception/length_correlation": "Of a response's dependency with its "
            "length.",
            "perception/weight_mean": "1, where the weights keep the step's size.",
            "perception/weight_max": "The largest weight of a response. Far above the "
            "others, a few responses lead the update.",
            "perception/weight_min": "The smallest.",
        },
        ("perception/", "vision/"),
    ),
    Group(
        "Time and size",
        "Seconds a step; the first step of each kind also holds its compilation.",
        {
            "timing_s/step": "The whole step.",
            "data/prompts_played": "Prompts sampled in the step, kept or not.",
            "data/prompts_repeated": "Rows that the step had already, which are drawn "
            "alike and count double: some, perhaps, where one pass over all ends.",
            "data/tokens_played": "Tokens sampled in the step, kept or not.",
            "timing_s/gen": "Sampling the responses.",
            "timing_s/perturbed": "Scoring them again with blackened pictures.",
            "timing_s/update": "Gradient and optimiser.",
        },
        ("timing_s/", "timing_per_token_ms/", "perf/", "data/", "xla/"),
    ),
)


def arrange(names: Iterable[str]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(title, introduction, [(metric, explanation)]) of each group with curves.

    Every name comes back once; those that no group claims end under "Other metrics".
    """
    left = dict.fromkeys(names)
    groups = []
    for group in GROUPS:
        known = [name for name in group.known if name in left]
        claimed = [name for name in left if name.startswith(group.prefixes)]
        members = list(dict.fromkeys(known + claimed))
        for name in members:
            del left[name]
        explained = [(name, group.known.get(name, "")) for name in members]
        groups.append((group.title, group.introduction, explained))
    groups.append(("Other metrics", "", [(name, "") for name in left]))
    return [group for group in groups if group[2]]
