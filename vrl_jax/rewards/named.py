"""Rewards by their names, as commands and scripts take them, or from a user's file."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping

from vrl_jax.rewards import adapters, answers, boxes, text
from vrl_jax.rewards.boxed import boxed_exact, boxed_math, math_style
from vrl_jax.rewards.combine import Reward, of_text
from vrl_jax.rewards.dapo_answer import dapo_style
from vrl_jax.rewards.detection import detection_reward
from vrl_jax.rewards.final_answer import (
    anls,
    answer_reward,
    count,
    mathruler_boxed,
    multiple_choice,
    numeric,
    r1v_accuracy,
    r1v_style,
    vlm_r1_accuracy,
)
from vrl_jax.rewards.format import think_then_answer
from vrl_jax.rewards.grounding import (
    box_reward,
    click_reward,
    guarded_iou,
    near_click_reward,
    original,
    precision_reward,
    resized,
    scheduled_iou,
    thousandths,
    unit,
)
from vrl_jax.rewards.math_verifier import MathVerifier
from vrl_jax.rewards.parse import final_answer

FRAMES = {
    "original": original,
    "resized": resized,
    "norm1000": thousandths,
    "norm1": unit,
}
"""What numbers of boxes and points count: pixels of the picture as it came, or as the
model saw it; thousandths or ones of its sides."""
LIBRARY: dict[str, Reward] = {
    "exact": boxed_exact,
    "mcq": multiple_choice,
    "letters": answer_reward(answers.letter_set),
    "yes_no": answer_reward(answers.yes_no),
    "numeric": numeric,
    "chartqa": answer_reward(answers.relaxed_accuracy),
    "count": count,
    "ocr_edit": answer_reward(text.indel_ratio),
    "anls": anls,
    "token_f1": answer_reward(text.token_f1),
    "dapo": dapo_style,
}
OF_FORM: dict[str, Reward] = {
    "format": of_text(think_then_answer),
    "repetition": of_text(text.repetition),
}
"""They do not read the answer: what they pay is added to what does."""
OF_MATHEMATICS: Mapping[str, Callable[[MathVerifier], Reward]] = {
    "math": math_style,
    "math_verify": boxed_math,
    "accuracy": functools.partial(boxed_math, read=final_answer),
    "mathruler": mathruler_boxed,
    "r1v": r1v_style,
    "r1v_accuracy": r1v_accuracy,
    "vlm_r1": vlm_r1_accuracy,
}
OF_BOXES: Mapping[str, Callable[..., Reward]] = {
    "iou": functools.partial(box_reward, boxes.first_iou),
    "iou50": functools.partial(box_reward, boxes.iou_reached),
    "iou_guarded": guarded_iou,
    "iou_schedule": scheduled_iou,
    "box_f1": functools.partial(box_reward, boxes.hungarian_f1),
    "map": precision_reward,
    "od_ap50": functools.partial(precision_reward, thresholds=(0.5,)),
    "detection": detection_reward,
    "click": click_reward,
    "near_click": near_click_reward,
}
OF_A_FILE = {
    "length": "rewards.length.cosine of a limit of tokens",
    "soft_overlong": "rewards.length.soft_overlong of a limit and a buffer",
    "judge": "rewards.judge.same_answer of an endpoint",
}
"""What a name alone cannot say."""
STYLES: Mapping[str, Callable[[str], Reward]] = {
    "native": adapters.load,
    "easyr1": adapters.easyr1,
    "verl": adapters.verl,
    "trl": adapters.trl,
    "trl_chat": functools.partial(adapters.trl, conversational=True),
    "vlm_r1": adapters.vlm_r1,
    "ms_swift": adapters.ms_swift,
    "openrlhf": adapters.openrlhf,
}


@contextlib.contextmanager
def named_reward(
    name: str,
    *,
    style: str | None = None,
    frame: str | None = None,
    gold_frame: str = "original",
) -> Iterator[Reward]:
    """The reward of a name or of path.py:function; its processes end with the block.

    Rewards of boxes ask for the `frame` of the responses' numbers; `gold_frame` is that
    of the rows' answers. `ValueError` for a name, style or frame that there is not.
    """
    if ":" in name:
        yield _own_reward(name, style)
        return
    if style is not None:
        raise ValueError(f"--style is for path.py:function, not for {name!r}.")
    if name in OF_A_FILE:
        raise ValueError(
            f"{name!r} needs more than its name, {OF_A_FILE[name]}: call that in a "
            "file of your own, path.py:function."
        )
    if name in LIBRARY | OF_FORM:
        yield (LIBRARY | OF_FORM)[name]
    elif name in OF_BOXES:
        for given in (frame, gold_frame):
            if given not in FRAMES:
                raise ValueError(
                    f"{name} needs --frame, what the numbers of a box count: frames "
                    f"are {', '.join(FRAMES)}, got {given!r}."
                )
        yield OF_BOXES[name](frame=FRAMES[frame], gold_frame=FRAMES[gold_frame])
    elif name in OF_MATHEMATICS:
        with MathVerifier() as verifier:
            yield OF_MATHEMATICS[name](verifier)
    else:
        known = sorted([*LIBRARY, *OF_FORM, *OF_BOXES, *OF_MATHEMATICS])
        raise ValueError(
            f"there is no reward {name!r}: the library's are {', '.join(known)}; your "
            "own is path.py:function."
        )


def _own_reward(reference: str, style: str | None) -> Reward:
    try:
        style = style or style_of(reference)
        if style in STYLES:
            return STYLES[style](reference)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the user's file, at import
        raise ValueError(f"{reference}: {type(error).__name__}: {error}") from error
    raise ValueError(f"styles are {', '.join(STYLES)}, got {style!r}.")


def style_of(reference: str) -> str:
    """Whose signature the function of path.py:function has, by its arguments' names.

    `ValueError` where they are nobody's.
    """
    function = adapters.load(reference)
    if inspect.isclass(function):
        return "ms_swift"
    names = list(inspect.signature(function).parameters)
    for name, style in (
        ("reward_inputs", "easyr1"),
        ("reward_input", "easyr1"),
        ("predicts", "easyr1"),
        ("predict", "easyr1"),
        ("solution_str", "verl"),
        ("solution_strs", "verl"),
        ("episodes", "native"),
        ("queries", "openrlhf"),
    ):
        if name in names:
            return style
    if "completions" in names:
        # They look alike: the functions of VLM-R1 read messages, those of TRL may.
        return "vlm_r1" if "solution" in names else "trl"
    raise ValueError(
        f"{reference} takes {', '.join(names)}, which is no signature that is known: "
        f"name it with --style, one of {', '.join(STYLES)}."
    )
