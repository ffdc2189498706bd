"""How near one text is to another, from 0 to 1."""

import functools
import re
from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Indel, Levenshtein
from rouge_score import tokenizers
from sacrebleu.metrics import BLEU

MAX_WORDS = 2000
"""Longest common subsequences are quadratic: `rouge_l` reads no further."""


def all_match(prediction: str, gold: str) -> bool:
    """The same text in lower case, blanks around and one final dot dropped.

    https://github.com/om-ai-lab/VLM-R1
    """
    return _plain(prediction) == _plain(gold)


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".").strip()


def edit_similarity(prediction: str, gold: str) -> float:
    """1 - Levenshtein distance / length of the longer text; 1 for two empty texts."""
    return Levenshtein.normalized_similarity(prediction, gold)


def indel_ratio(prediction: str, gold: str) -> float:
    """1 - (insertions + deletions) / (sum of lengths); a substitution costs 2.

    `ratio` of https://github.com/rapidfuzz/Levenshtein, and VLM-R1's text reward: 8/13
    for kitten and sitting, where `edit_similarity` is 4/7.
    """
    return Indel.normalized_similarity(prediction, gold)


def anls(prediction: str, golds: Sequence[str], *, threshold: float = 0.5) -> float:
    """max over golds of s = 1 - distance / longer length; 0 where s < threshold.

    In lower case, runs of blanks as one. ST-VQA,
    https://arxiv.org/abs/1905.13648. Public code that pays distance / length has it
    reversed.
    """
    texts = [" ".join(gold.lower().split()) for gold in golds]
    given = " ".join(prediction.lower().split())
    best = max((edit_similarity(given, text) for text in texts), default=0.0)
    return best if best >= threshold else 0.0


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the lower-cased words, each as often as it occurs; SQuAD's without its
    dropping of articles and punctuation, https://arxiv.org/abs/1606.05250.
    """
    return _f1(Counter(prediction.lower().split()), Counter(gold.lower().split()))


def token_set_f1(prediction: str, gold: str) -> float:
    """F1 of the sets of lower-cased words. https://github.com/ritzz-ai/GUI-R1"""
    p, g = set(prediction.lower().split()), set(gold.lower().split())
    return _f1(Counter(p), Counter(g))


def _f1(p: Counter[str], g: Counter[str]) -> float:
    if not p and not g:
        return 1.0
    return 2 * (p & g).total() / (p.total() + g.total())


def gui_text(prediction: str, gold: str) -> float:
    """1 where `token_set_f1` is 0.5 or more, or one of two single words in the other.

    Square brackets are dropped first, and two empty texts are 0.
    https://github.com/ritzz-ai/GUI-R1
    """
    texts = [re.sub(r"[\[\]]", "", text).lower() for text in (prediction, gold)]
    p, g = (set(text.split()) for text in texts)
    if not p or not g:
        return 0.0
    if len(p) == len(g) == 1:
        [one], [other] = p, g
        return float(one in other or other in one)
    return float(token_set_f1(*texts) >= 0.5)


def bleu4(prediction: str, gold: str) -> float:
    """Sentence BLEU-4 of lower-cased words; a count of 0 becomes 0.1.

    Order 1 to 4 with equal weights and the brevity penalty,
    https://aclanthology.org/P02-1040; the smoothing is NLTK's method 1, the one of
    SATORI-R1, https://arxiv.org/abs/2505.19094.
    """
    if not prediction.split() or not gold.split():
        return 0.0
    found = _bleu().corpus_score(
        [" ".join(prediction.split())], [[" ".join(gold.split())]]
    )
    return min(max(found.score / 100, 0.0), 1.0)


@functools.cache
def _bleu() -> BLEU:
    return BLEU(
        lowercase=True, tokenize="none", smooth_method="floor", smooth_value=0.1
    )


def rouge_l(prediction: str, gold: str) -> float:
    """F1 of the longest common subsequence of stemmed words.

    https://aclanthology.org/W04-1013, with the tokens of google-research's rouge_score.
    """
    split = tokenizers.DefaultTokenizer(use_stemmer=True).tokenize
    p, g = split(prediction)[:MAX_WORDS], split(gold)[:MAX_WORDS]
    if not p or not g:
        return float(p == g)
    # Indel similarity counts the common subsequence from both sides.
    return Indel.normalized_similarity(p, g)


def caption_score(prediction: str, gold: str) -> float:
    """(BLEU-4 + ROUGE-L) / 2: SATORI-R1, https://arxiv.org/abs/2505.19094."""
    return (bleu4(prediction, gold) + rouge_l(prediction, gold)) / 2


def repetition(text: str, *, n: int = 6) -> float:
    """-(1 - distinct / total) over n-grams of lower-cased words; 0 below n words.

    In (-1, 0]; weigh it. VLM-R1 (n 6), Perception-R1 (n 20, weight 2),
    https://arxiv.org/abs/2506.07218.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least 1 word, got n={n}.")
    words = text.lower().split()
    return repeated([tuple(words[i : i + n]) for i in range(len(words) - n + 1)])


def repeated(items: Sequence[object]) -> float:
    """-(1 - distinct / total) of any items, such as (box, label) pairs; 0 of none."""
    return len(set(items)) / len(items) - 1.0 if items else 0.0


def repeats_a_sentence(text: str) -> bool:
    """Whether more than one sentence stood there before; of three equal ones, two did.

    VisionReasoner, where this costs the point, https://arxiv.org/abs/2505.12081. As in
    code that other projects took over: sentences end with a dot and nothing else, case
    counts, blanks around them do not.
    """
    sentences = [part.strip() for part in text.split(".") if part.strip()]
    return len(sentences) - len(set(sentences)) > 1
