"""`vrl-jax plan`: whether a training step fits some chips, how long it must take."""

import functools
import importlib.util
import inspect
import json as json_text
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from tyro.conf import UseAppendAction

from vrl_jax.engine.reference import near
from vrl_jax.models import experts
from vrl_jax.models.critic import Critic, linear
from vrl_jax.models.families import Spec
from vrl_jax.models.gemma3 import released as gemma3
from vrl_jax.models.policy import Params
from vrl_jax.models.qwen_vl.released import RELEASED
from vrl_jax.models.sharding import parse_axes
from vrl_jax.planning.chips import Chip
from vrl_jax.planning.chips import topology as parse_topology
from vrl_jax.planning.compiling import (
    Request,
    compiled_for_gpu,
    compiled_for_tpu,
    description,
)
from vrl_jax.planning.plan import ANALYTIC, Plan, as_json, page, step_seconds
from vrl_jax.planning.search import search, usual
from vrl_jax.planning.shapes import Sizes
from vrl_jax.recipes.cispo import cispo
from vrl_jax.recipes.dapo import dapo
from vrl_jax.recipes.dr_grpo import dr_grpo
from vrl_jax.recipes.gmpo import gmpo
from vrl_jax.recipes.grpo import grpo
from vrl_jax.recipes.gspo import gspo
from vrl_jax.recipes.papo import papo
from vrl_jax.recipes.pgpo import pgpo
from vrl_jax.recipes.ppo import ppo
from vrl_jax.recipes.reinforce_pp import reinforce_pp
from vrl_jax.recipes.rloo import rloo
from vrl_jax.recipes.sapo import sapo
from vrl_jax.recipes.vppo import vppo
from vrl_jax.training.choices import Choices, check, flags
from vrl_jax.training.iteration import Recipe

RECIPES: Mapping[str, Callable[..., Recipe]] = {
    "cispo": cispo,
    "dapo": dapo,
    "dr_grpo": dr_grpo,
    "gmpo": gmpo,
    "grpo": grpo,
    "gspo": gspo,
    "papo": papo,
    "pgpo": pgpo,
    "ppo": ppo,
    "reinforce_pp": reinforce_pp,
    "rloo": rloo,
    "sapo": sapo,
    "vppo": vppo,
}

FROZEN: Mapping[str, Spec] = {
    **RELEASED,
    "gemma-3-4b": gemma3.GEMMA3_4B,
    "gemma-3-12b": gemma3.GEMMA3_12B,
    "gemma-3-27b": gemma3.GEMMA3_27B,
}
"""What a method may ask besides."""

CRITICS: Mapping[str, Mapping[str, Critic]] = {"ppo": {"value": linear}}
"""What a recipe of these reads besides, as its script gives it."""


def plan(
    *,
    model: str,
    topology: str,
    recipe: str = "vppo",
    prompts: int = 128,
    group: int = 8,
    prompt_tokens: int = 2048,
    response_tokens: int = 2048,
    patches: int = 4096,
    pictures: int = 0,
    mesh: str = "",
    minibatches: int = 1,
    micro_batches: int = 0,
    per_pass: int = 0,
    slots: int = 0,
    remat: str = "nothing",
    precision: str = "bfloat16_master",
    moments: str = "float32",
    tower: str = "trained",
    lora_rank: int = 0,
    sampling: str = "spread",
    reference: str = "none",
    frozen: Annotated[tuple[str, ...], UseAppendAction] = (),
    analytic: bool = False,
    tries: int = 8,
    json: bool = False,
) -> int:
    """Compiles a training step for chips that are not there: memory, work, traffic.

    Where it does not fit, named choices are changed one at a time until it does.

    Args:
        model: a released model, such as qwen2.5-vl-7b.
        topology: chips and their shape: v5p:4x4x4, v5e:4x4, v6e:8x8, v7x:2x2x1, or
            a100:8, h100:8, h200:8.
        recipe: the method, by the name of its file.
        prompts: distinct prompts of a step.
        group: responses of each.
        prompt_tokens: of the longest prompt, picture included.
        response_tokens: of the longest response; of one of several turns, --row-tokens.
        patches: of one prompt's pictures; 4 patches are one token.
        pictures: that a response is shown between its turns, each as large as those of
            a prompt together; all are counted as shown to every response.
        mesh: axes as data=1,fsdp=16,tensor=4; by default as few shares of a head as
            the prompts allow, and parameters over at most 32 devices.
        minibatches: updates of a step.
        micro_batches: pieces of a minibatch; 0: a prompt at a time on each part.
        per_pass: prompts that are read or scored at a time; 0: as many as fit the mesh.
        slots: responses that are written at a time; 0: all.
        remat: what layers keep for the backward pass: everything, dots, nothing but
            their input, or split: that in parts over `tensor`.
        precision: float32, bfloat16_master or bfloat16_stochastic.
        moments: dtype of Adam's first moment: float32 or bfloat16.
        tower: trained or frozen.
        lora_rank: rank of adapters, which alone are trained; 0: none.
        sampling: tokens are written from weights that are spread as in training, or
            gathered once a step.
        reference: none, or where a reference policy lies: device or host.
        frozen: another model that the method asks and does not train, by a name as for
            --model, or gemma-3-4b, 12b or 27b; once for each. Their parameters are
            counted, in the precision of the policy's, not what they read and write.
        analytic: count, but compile nothing.
        tries: plans to try at most.
        json: print one JSON object, a list of the plans that were tried.
    """
    given = {
        "remat": remat,
        "precision": precision,
        "moments": moments,
        "tower": tower,
        "lora_rank": lora_rank,
        "sampling": sampling,
        "reference": reference,
    }
    check(Choices(**given))
    for name, value, known in (
        ("model", model, RELEASED),
        ("recipe", recipe, RECIPES),
    ):
        if value not in known:
            raise ValueError(
                f"there is no {name} {value!r}; there are {', '.join(known)}."
            )
    for value in frozen:
        if value not in FROZEN:
            raise ValueError(
                f"there is no frozen {value!r}; there are {', '.join(FROZEN)}."
            )
    where = parse_topology(topology)
    sizes = Sizes(prompts, group, prompt_tokens, response_tokens, patches, pictures)
    _check(sizes, minibatches)
    choices = usual(where, sizes._replace(prompts=prompts // minibatches))
    if mesh:
        choices = usual(where, sizes, axes=parse_axes(mesh))
    choices = choices._replace(
        minibatches=minibatches,
        slots=slots or prompts * group,
        micro_batches=micro_batches or choices.micro_batches,
        per_pass=per_pass or choices.per_pass,
        **given,
    )
    make = functools.partial(method, RECIPES[recipe], recipe, group)
    if reference != "none":
        make(())  # says so where the method has none
    critics = CRITICS.get(recipe)
    spec, others = RELEASED[model], tuple(FROZEN[name] for name in frozen)
    request = Request(spec, make, sizes, choices, where, critics, others)
    compile, why = _compiler(where.chip, analytic)
    if any(map(experts.are_in, (spec, *others))):
        why += f"\n{_of_experts(where.chip)}"
    found = []
    for one in search(request, compile, tries=tries):
        found.append(one)
        if not json:
            print(page(one), end="\n\n", flush=True)
    if json:
        print(json_text.dumps([{"note": why, **as_json(one)} for one in found]))
    else:
        print(why)
        print(_verdict(found))
    return int(not any(one.fits for one in found))


def _check(sizes: Sizes, minibatches: int) -> None:
    if min(sizes._replace(pictures=1)) < 1 or sizes.pictures < 0 or minibatches < 1:
        raise ValueError(f"sizes are at least 1, pictures at least 0, got {sizes}.")
    if sizes.prompts % minibatches:
        raise ValueError(
            f"{sizes.prompts} prompts do not make {minibatches} equal minibatches."
        )


def method(
    make: Callable[..., Recipe], name: str, group: int, reference: Params | None
) -> Recipe:
    """A recipe with its defaults, near the reference if there is one."""
    if reference is None:
        return make(group_size=group)
    if "anchor" not in inspect.signature(make).parameters:
        raise ValueError(f"{name} has no reference: leave --reference out.")
    return make(group_size=group, anchor=near(reference, weight=0.01))


def _compiler(chip: Chip, analytic: bool) -> tuple[Callable | None, str]:
    if analytic:
        return None, "analytic, as asked: nothing was compiled."
    if not chip.topology and importlib.util.find_spec("jax_cuda13_plugin") is None:
        return None, (
            "analytic: JAX's CUDA plugin is not installed (pip install 'jax[cuda13]')."
        )
    if not chip.topology and not description(chip.name).is_file():
        return None, f"analytic: there is no description of {chip.name} to compile for."
    if not chip.topology:
        return compiled_for_gpu, (
            "compiled by XLA for CUDA without trying variants of kernels; the head is "
            "XLA's, which needs no less memory than the kernel that runs on a Hopper."
        )
    if importlib.util.find_spec("libtpu") is None:
        return None, "analytic: libtpu is not installed (pip install -e '.[aot]')."
    return compiled_for_tpu, (
        "compiled by libtpu up to the assignment of buffers; the head is XLA's, which "
        "needs no less memory than the kernel that runs on a TPU."
    )


def _of_experts(chip: Chip) -> str:
    """What the products with experts' matrices rely on."""
    if chip.topology:
        flag = f"LIBTPU_INIT_ARGS=--{experts.KERNEL}=true"
        return f"Experts' kernel: {flag}; v5p needs no flag."
    return (
        "Experts are multiplied in blocks on GPUs, with up to three times the work "
        "that is counted here."
    )


def _verdict(found: Sequence[Plan]) -> str:
    if found[-1].source == ANALYTIC:
        held = "more than the chips have" if not found[-1].fits else "within the chips"
        return f"What is held is {held}; temporaries are not counted."
    fitting = [one for one in found if one.fits]
    if not fitting:
        return "None of these fits: more chips, shorter sequences, or a smaller model."
    best = min(fitting, key=step_seconds)
    as_flags = f"As flags of a script: {flags(best.request.choices)}"
    if best is found[0]:
        return f"It fits as asked.\n{as_flags}"
    first, last = found[0].request.choices, best.request.choices
    changed = ", ".join(
        f"{name} {old} -> {new}"
        for name, old, new in zip(Choices._fields, first, last, strict=True)
        if old != new
    )
    least = step_seconds(best)
    return f"It fits with {changed}: at least {least:.1f} s a step.\n{as_flags}"
