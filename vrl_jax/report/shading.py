"""Words of a response with a shade behind each, for notebooks."""

import html
import math
from collections.abc import Sequence


def shaded(texts: Sequence[str], scores: Sequence[float], *, largest: float) -> str:
    """HTML: the texts in a row, the darker the higher the score, which hovering tells.

    `largest` and more is the full shade, 0 and less, or NaN, is none. The shade goes by
    the root of the score, so that small ones are seen. `ValueError` where texts and
    scores are not as many, or `largest` is not above 0.
    """
    if len(texts) != len(scores) or not largest > 0:
        raise ValueError(
            "every text needs a score, and `largest` is above 0; got "
            f"{len(texts)} texts, {len(scores)} scores and largest={largest}."
        )
    return "".join(map(_span, texts, scores, [largest] * len(texts)))


def _span(text: str, score: float, largest: float) -> str:
    share = 0.0 if math.isnan(score) else min(max(score, 0.0), largest) / largest
    style = f"background: rgba(242,140,40,{math.sqrt(share):.2f})"
    return f'<span style="{style}" title="{score:.3g}">{html.escape(text)}</span>'
