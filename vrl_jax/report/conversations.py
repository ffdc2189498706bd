"""Episodes of more than one turn, picked and cut so that a page can show them."""

import base64
import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from vrl_jax.models.front_end import load_image, on_white
from vrl_jax.report.reading import Row, brief

EPISODES = 6
TURNS = 24
PICTURES = 12
CHARACTERS = 2000
"""Of a page, an episode and a text, the first so many; what is left out is counted."""
SIDE = 280
"""Pixels of a picture, each way."""
LARGEST_PNG = 40_000
"""Bytes of a picture; a larger one is shown as JPEG."""

Load = Callable[[str], Row]
"""A picture's name, or its data -> what the page needs to show it, or why it cannot."""

_SPECIAL = re.compile(r"(<\|[^|<>]{1,64}\|>|<image>)")
_ERROR = re.compile(r"(?<!\w)Error: ")
"""How `engine.tools` begins what it tells of a wrong call."""


def conversations(rollouts: Mapping[Path, Sequence[Row]]) -> list[Row]:
    """Of each file some prompts, with the best and the worst of their episodes.

    Prompts whose rewards lie furthest apart come first. Those to which no episode has
    more than one turn are passed over.
    """
    several = {file: _several(rows) for file, rows in rollouts.items()}
    several = {file: rows for file, rows in several.items() if rows}
    share = max(EPISODES // max(len(several), 1), 1)
    newest = [*several.items()][-EPISODES:]
    return [shown for file, rows in newest for shown in _prompts(file, rows, share)]


def _several(rows: Sequence[Row]) -> list[Row]:
    """All episodes of prompts to which one has several turns."""
    talked = {_asked(row) for row in rows if len(row.get("turns") or []) > 1}
    return [row for row in rows if _asked(row) in talked]


def _asked(row: Row) -> tuple[str, str]:
    return str(row["id"]), str(row["prompt"])


def _prompts(file: Path, rows: Sequence[Row], most: int) -> Iterator[Row]:
    """The prompts, until they have `most` episodes."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(_asked(row), []).append(row)
    for group in sorted(groups.values(), key=_apart, reverse=True):
        picked = _best_and_worst(group)[:most]
        most -= len(picked)
        if picked:
            yield _prompt(file, group, picked)


def _best_and_worst(group: Sequence[Row]) -> list[Row]:
    """One alone where they are equal; what was not scored is neither."""
    rewards = ((row["reward"], row) for row in group)
    scored = [row for x, row in rewards if x is not None and math.isfinite(x)]
    if not scored:
        return [*group[:1]]
    best, worst = (pick(scored, key=lambda row: row["reward"]) for pick in (max, min))
    return [best, worst] if best["reward"] > worst["reward"] else [best]


def _apart(group: Sequence[Row]) -> float:
    ends = _best_and_worst(group)
    return ends[0]["reward"] - ends[-1]["reward"] if len(ends) > 1 else 0.0


def _prompt(file: Path, group: Sequence[Row], picked: Sequence[Row]) -> Row:
    first = picked[0]
    load = functools.partial(_picture, folder=file.parent)
    places = ("best", "worst") if len(picked) > 1 else ("one",)
    return {
        "file": file.name,
        "phase": file.stem.rpartition("_")[0].replace("_", " "),
        "step": first["step"],
        "id": first["id"],
        "answer": first.get("ground_truth"),
        **_cut(first["prompt"]),
        **_pictures(first.get("images") or (), load, PICTURES),
        "episodes": [
            {"place": f"{place} of {len(group)}", **_episode(row, load)}
            for place, row in zip(places, picked, strict=True)
        ],
    }


def _episode(row: Row, load: Load) -> Row:
    details = dict(row.get("reward_details") or {})
    details.pop("overall", None)
    return {
        "reward": brief(row["reward"]),
        "details": _named(details),
        "facts": _named(row.get("facts") or {}),
        "cut": not row.get("finished", True),
        **in_turns(row.get("turns") or [_alone(row)], load),
    }


def _alone(row: Row) -> Row:
    """The turn of an episode that has no other."""
    return {"text": row.get("response") or "", "chosen": True}


def in_turns(turns: Sequence[Row], load: Load) -> Row:
    """As many turns, and pictures of theirs, as there is room for."""
    shown, room = [], PICTURES
    for turn in turns[:TURNS]:
        shown.append(_turn(turn, load, room))
        room -= len(shown[-1]["pictures"])
    return {"turns": shown, "turns_left_out": len(turns) - len(shown)}


def _turn(turn: Row, load: Load, room: int) -> Row:
    facts = dict(turn.get("facts") or {})
    chosen, model = bool(turn.get("chosen")), facts.pop("model", None)
    text = str(turn["text"])
    return {
        "chosen": chosen,
        "speaker": "policy" if chosen else model or "told",
        "error": not chosen and _ERROR.search(text) is not None,
        "facts": _named(facts),
        **_cut(text),
        **_pictures(turn.get("images") or (), load, room),
    }


def _cut(text: object) -> Row:
    """The text in pieces, every second one a special token, and what is left out."""
    text = str(text)
    return {
        "pieces": _SPECIAL.split(text[:CHARACTERS].strip("\n")),
        "characters_left_out": max(len(text) - CHARACTERS, 0),
    }


def _named(facts: Row) -> str:
    shown = (f"{name} {brief(value)}" for name, value in facts.items())
    return " · ".join(text[:200] for text in shown)


def _pictures(names: Sequence[str], load: Load, room: int) -> Row:
    return {
        "pictures": [load(str(name)) for name in names[:room]],
        "pictures_left_out": max(len(names) - room, 0),
    }


def _picture(name: str, folder: Path) -> Row:
    """A data: URI and a width that shows a small picture's pixels as squares.

    Or why there is none. A name is a file of the folder's or a path of the user's.
    """
    try:
        files = [path for path in (folder / name, Path(name)) if path.is_file()]
        if not files:
            raise ValueError("there is no such file.")
        picture = load_image(str(files[0]), on_white)
    except (OSError, ValueError) as error:
        return {"missing": f"{name[:200]}: {str(error)[:400]}"}
    picture.thumbnail((SIDE, SIDE))
    scale = max(SIDE // max(picture.size), 1)
    return {
        "source": _data(picture),
        "width": picture.width * scale,
        "enlarged": scale > 1,
    }


def _data(picture: Image.Image) -> str:
    kind, data = "png", _encoded(picture, "PNG", optimize=True)
    if len(data) > LARGEST_PNG:
        kind, data = "jpeg", _encoded(picture, "JPEG", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(picture: Image.Image, kind: str, **how: bool | int) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()
