"""A run folder -> one HTML file that shows what was learned and why.

The page needs no network and no script, and its content policy forbids both: what a
model wrote is text from a stranger.
"""

import base64
import itertools
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from vrl_jax.report import glossary, plots
from vrl_jax.report.conversations import conversations, in_turns
from vrl_jax.report.reading import (
    Row,
    Run,
    brief,
    flatten,
    metric_names,
    phase_offsets,
    read_run,
    series,
)

EXAMPLES_SHOWN = 12
PICTURE_WIDTH = 280
LARGEST_DEPENDENCY = 10.0
"""Where VPPO clamps visual dependency, https://arxiv.org/abs/2510.09285."""

_ACCURACY, _SHUFFLED = "val/accuracy", "val/accuracy_shuffled_images"
_TRAINING = {
    "reward/accuracy": "training accuracy (sampled)",
    "critic/score/mean": "training reward (sampled)",
    "sft/accuracy": "accuracy in supervised steps",
}
_KINDS = {
    "seen": "must be read off the picture",
    "derived": "could follow from the text before them",
}


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all."""
    content = read_run(run)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")
    page = template.render(
        title=_title(content),
        claim=content.config.get("claim"),
        command=content.config.get("command"),
        settings=[
            pair
            for pair in flatten(content.config)
            if pair[0] not in ("title", "claim", "command")
        ],
        headline=_headline(content),
        learning_curve=_learning_curve(content),
        evaluations=_evaluation_table(content.evaluations),
        examples=[_example(row) for row in content.examples[:EXAMPLES_SHOWN]],
        kinds_marked=any(
            token.get("kind") in _KINDS
            for row in content.examples
            for token in row.get("tokens") or []
        ),
        example_count=len(content.examples),
        legend=[(s, _shade(s)) for s in (0, 0.1, 0.5, 1, 2, 5, 10)],
        conversations=conversations(content.rollouts),
        kinds=_kinds(content.dependency),
        groups=_groups(content),
        data_report=flatten(content.data_report),
        steps=content.metrics[-1]["step"],
        minutes=content.metrics[-1].get("time_s", math.nan) / 60,
        notes=content.notes,
    )
    target = content.folder / "report.html"
    partial = target.with_suffix(".html.partial")
    # A lone surrogate is legal in JSON and has no UTF-8 form.
    partial.write_bytes(page.encode("utf-8", "replace"))
    os.replace(partial, target)
    return target


def _title(run: Run) -> str:
    name = run.folder.resolve().name
    recipe = run.config.get("recipe")
    return run.config.get("title") or (f"{recipe} · {name}" if recipe else name)


def _learning_curve(run: Run) -> str:
    offsets = phase_offsets(run.metrics)
    curves = [
        (label, series(run.metrics, name, offsets))
        for name, label in _TRAINING.items()
        if any(name in row for row in run.metrics)
    ]
    points = [
        plots.Point(
            row["step"] + offsets.get(row["phase"], 0.0),
            row[_ACCURACY],
            *plots.wilson_interval(row[_ACCURACY], row.get("val/count", 0)),
            math.nan if row.get(_SHUFFLED) is None else row[_SHUFFLED],
        )
        for row in run.evaluations
        if row.get(_ACCURACY) is not None
    ]
    return plots.learning_curve(curves, points) if curves or points else ""


def _headline(run: Run) -> Row:
    """Accuracy before and after training, and what to make of it.

    Of reinforcement learning where there was any, or of all that was learnt.
    """
    rows = [row for row in run.evaluations if row.get(_ACCURACY) is not None]
    if not rows:
        return {}
    after, rewarded = rows[-1], any(row["phase"] == "rl" for row in rows)
    earlier = itertools.takewhile(
        lambda row: row["step"] == 0 or (rewarded and row["phase"] != "rl"), rows[:-1]
    )
    before = next(reversed([*earlier]), None)
    shuffled = after.get(_SHUFFLED)
    return {
        "before": before,
        "after": after,
        "training": "reinforcement learning" if rewarded else "training",
        "accuracy": after[_ACCURACY],
        "gain": before and after[_ACCURACY] - before[_ACCURACY],
        "gain_is_clear": before and _differ(before, after, _ACCURACY, _ACCURACY),
        "shuffled": shuffled,
        "looks": shuffled is not None
        and shuffled < after[_ACCURACY]
        and _differ(after, after, _ACCURACY, _SHUFFLED),
        "interval": plots.wilson_interval(after[_ACCURACY], after.get("val/count", 0)),
        "count": after.get("val/count"),
    }


def _differ(a: Row, b: Row, key_a: str, key_b: str) -> bool:
    """Whether the two shares differ by more than two standard errors."""
    variance = sum(
        row[key] * (1 - row[key]) / max(row.get("val/count", 1), 1)
        for row, key in ((a, key_a), (b, key_b))
    )
    return abs(a[key_a] - b[key_b]) > 2 * math.sqrt(max(variance, 0.0))


def _evaluation_table(rows: Sequence[Row]) -> Row:
    fixed = ("name", "phase", "step")
    columns = dict.fromkeys(key for row in rows for key in row if key not in fixed)
    return {
        "columns": [*columns],
        "rows": [
            (row["name"], row["step"], [brief(row.get(key)) for key in columns])
            for row in rows
        ],
    }


def _example(row: Row) -> Row:
    tokens = row.get("tokens") or []
    return {
        "id": row.get("id", ""),
        "question": re.sub(r"\s*<image>\s*", " ", str(row["question"])).strip(),
        "answer": row["answer"],
        "response": row["response"],
        "reward": row["reward"],
        "right": row["reward"] >= 0.5,
        "picture": _picture(row["image_png"]) if row.get("image_png") else None,
        "tokens": [_token(token) for token in tokens],
        **_turns(row.get("turns") or []),
    }


def _turns(turns: Sequence[Row]) -> Row:
    """As conversations are shown, and the tokens of what was measured."""
    shown = in_turns(turns, _picture)
    for turn, row in zip(shown["turns"], turns, strict=False):
        turn["tokens"] = [_token(token) for token in row.get("tokens") or []]
    return shown


def _picture(png: str) -> Row:
    """A data: URI and a width that shows a small picture's pixels as squares."""
    source = f"data:image/png;base64,{png}"
    try:
        head = base64.b64decode(png[:32])
        (width,) = struct.unpack(">I", head[16:20])
    except (ValueError, struct.error):
        return {"source": source, "width": PICTURE_WIDTH, "enlarged": False}
    scale = max(1, PICTURE_WIDTH // max(width, 1))
    return {
        "source": source,
        "width": min(width * scale, PICTURE_WIDTH),
        "enlarged": scale > 1,
    }


def _token(token: Mapping[str, Any]) -> Row:
    """A token's text, its shade, and its numbers as a tooltip.

    Special tokens such as <|im_end|> are named and not shaded.
    """
    text, dependency = str(token["text"]), token.get("dependency")
    kind = token.get("kind")
    numbers = {
        "visual dependency": dependency,
        "log-prob": token.get("logprob"),
        "entropy": token.get("entropy"),
    }
    facts = [f"{name} {brief(x)}" for name, x in numbers.items() if x is not None]
    facts += [_KINDS[kind]] if kind in _KINDS else []
    special = re.fullmatch(r"\s*<\|[^|]*\|>\s*", text) is not None
    return {
        "text": text.replace("\n", "⏎\n"),
        "special": special,
        "shade": 0.0 if special else _shade(dependency),
        "kind": kind if kind in _KINDS else "",
        "facts": " · ".join(facts),
    }


def _shade(dependency: float | None) -> float:
    """Share of full colour; the root spreads the many small values apart."""
    if dependency is None or math.isnan(dependency):
        return 0.0
    share = min(max(dependency, 0.0), LARGEST_DEPENDENCY) / LARGEST_DEPENDENCY
    return round(math.sqrt(share), 3)


def _kinds(dependency: Mapping[str, Mapping[str, float]]) -> Row:
    """The bars, and how many times more the seen tokens depend on the picture."""
    measured = {k: v for k, v in dependency.items() if v and v.get("mean") is not None}
    if not measured:
        return {}
    bars = [
        (
            f"tokens that {_KINDS[kind]}" if kind in _KINDS else f"{kind} tokens",
            float(value["mean"]),
            f"{brief(value['mean'])}"
            + (f"  ({value['count']:,} tokens)" if "count" in value else ""),
        )
        for kind, value in measured.items()
    ]
    seen, derived = (measured.get(k, {}).get("mean", 0.0) for k in _KINDS)
    return {
        "svg": plots.bars(bars),
        "ratio": seen / derived if seen > 0 and derived > 0 else None,
    }


def _groups(run: Run) -> list[Row]:
    """The glossary's groups, each metric with its curve and last value."""
    offsets = phase_offsets(run.metrics)
    return [
        {
            "title": title,
            "introduction": introduction,
            "curves": [
                _curve(run, name, explanation, offsets) for name, explanation in members
            ],
        }
        for title, introduction, members in glossary.arrange(metric_names(run.metrics))
    ]


def _curve(run: Run, name: str, explanation: str, offsets: Mapping[str, float]) -> Row:
    phases = {row["phase"] for row in run.metrics if name in row}
    curve = series(run.metrics, name, offsets if len(phases) > 1 else None)
    finite = curve.values[np.isfinite(curve.values)]
    top = _axis_top(finite)
    return {
        "name": name,
        "explanation": explanation,
        "last": brief(float(finite[-1])) if finite.size else "",
        "above": brief(float(finite.max())) if top else "",
        "not_finite": len(curve.values) - finite.size,
        "count": len(curve.values),
        "svg": plots.small_curve(name, curve, top=top) if finite.size else "",
    }


def _axis_top(values: np.ndarray) -> float | None:
    """Where to cut an axis that a rare peak, such as a compilation, would flatten."""
    if values.size < 20 or values.min() < 0:
        return None
    usual = 1.5 * np.quantile(values, 0.95)
    return float(usual) if 0 < 3 * usual < values.max() else None
