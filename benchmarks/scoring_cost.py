"""VPPO's scorings side by side: by the sampled token, by the full KL and by JS.

    python benchmarks/scoring_cost.py --rounds 5

Qwen2.5-VL-7B at half its depth, an eighth of its width and a sixteenth of its ids, so
that the head is the same part of the decoder (7.7 %) and the tower too; prompts of 192
tokens, 144 of them a picture, and responses as long. Each scoring is the recipe's own:
`Actor.add_logprobs`, or `Actor.add_divergence` with the states that the sampler kept.
They take turns with their parts, the states under the perturbed view, which all of them
need, and the head alone; medians are printed. Below stand the operations, here and for
the real model.
"""

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from vrl_kernels.linear_head import linear_head

from vrl_jax import perception, views
from vrl_jax.engine.actor import Actor
from vrl_jax.engine.likelihood import final_states, first_positions
from vrl_jax.engine.packing import Room, Unpadded, packed
from vrl_jax.engine.processing import Processor
from vrl_jax.models.parameters import init_params
from vrl_jax.models.qwen_vl.front_end import front_end
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.qwen_vl.policy import policy
from vrl_jax.models.qwen_vl.spec import QwenSpec, TextSpec, VisionSpec
from vrl_jax.types import Rollout

REAL = QwenSpec(
    VisionSpec(32, 1280, 16, 3420, (7, 15, 23, 31), window=112),
    TextSpec(28, 3584, 18944, 28, 4, 152064),
    tied=False,
)
SMALL = QwenSpec(
    VisionSpec(16, 160, 8, 428, (7, 15), window=112),
    TextSpec(14, 448, 2368, 14, 2, 9504, rope_sections=(4, 6, 6)),
    tied=False,
    image_token=1,
    video_token=2,
    vision_start_token=3,
    vision_end_token=4,
)
SIDE, TEXT = 336, 48  # pixels of the picture, prompt tokens beside it


def operations(spec: QwenSpec, pictures: int, prompt: int, response: int) -> dict:
    """Multiplications and additions of one response's scoring, by part.

    Products with weights, and of queries with keys and of their weights with values;
    `pictures` are merged tokens. Windows are counted as one attention of their size.
    """
    text, vision = spec.text, spec.vision
    tokens, patches = prompt + response, pictures * vision.group
    query, pair = text.heads * text.head_dim, text.kv_heads * text.head_dim
    layer = text.width * (2 * query + 2 * pair + 3 * text.mlp)
    causal = tokens**2  # 2 products of half the pairs
    decoder = 2 * text.layers * (tokens * layer + causal * query)
    block = vision.width * (4 * vision.width + 3 * vision.mlp)
    full = len(vision.full_blocks)
    keys = full * patches + (vision.depth - full) * vision.window_patches
    merged = vision.width * vision.group
    merger = pictures * merged * (merged + text.width)
    tower = vision.depth * patches * block + 2 * patches * keys * vision.width
    tower = 2 * (tower + merger + patches * vision.patch_values * vision.width)
    head = 2 * response * text.width * text.vocabulary
    return {"states": decoder + tower, "head": head}


def arguments(responses: int) -> tuple[Actor, Rollout]:
    """A policy with random weights, and a rollout of random tokens."""
    random, host = np.random.default_rng(0), front_end(SMALL)
    pixels = random.integers(0, 256, (responses, SIDE, SIDE, 3), np.uint8)
    rows = []
    for one in pixels:
        picture = host.lay_out(host.resize(Image.fromarray(one)))
        shown = np.full(len(picture.merged_index), host.image_token)
        tokens = np.concatenate([random.integers(5, 9504, TEXT), shown])
        positions = np.repeat(np.arange(len(tokens))[:, None], 3, axis=1)
        rows.append(Unpadded(tokens, positions, (picture,)))
    room = Room((len(tokens),), len(picture.patches))
    prompts = jax.tree.map(jnp.asarray, packed(room, host, rows))
    shape = prompts.tokens.shape  # of the responses as well
    steps = jnp.arange(shape[1])[None, :, None]
    zeros = jnp.zeros(shape)
    rollout = Rollout(
        prompts=prompts,
        tokens=jnp.asarray(random.integers(5, 9504, shape)),
        positions=jnp.repeat(first_positions(prompts)[:, None, None] + steps, 3, 2),
        mask=jnp.ones(shape, bool),
        temperature=jnp.ones(responses),
        old_logprobs=zeros,
        extra_logprobs={},
        rewards=jnp.zeros(responses),
        reward_parts={},
        group=jnp.arange(responses),
    )
    actor = Actor(
        policy=policy(SMALL),
        params=init_params(jax.random.key(0), parameter_table(SMALL)),
        processor=Processor(None, host, room),  # no text is read
        allowed=jnp.ones(SMALL.text.vocabulary, bool),
        stop_ids=jnp.zeros(1, int),
        reward=None,
        max_new_tokens=shape[1],
    )
    return actor, rollout


def runs(actor: Actor, rollout: Rollout) -> dict[str, Callable]:
    """The scorings and their parts; every one is compiled at its first call."""
    read = jax.jit(functools.partial(final_states, actor.policy))
    rows = rollout.prompts, rollout.tokens, rollout.positions
    states = read(actor.params, *rows)
    noted = dataclasses.replace(rollout, states=states)
    view, key = actor.painting(views.blacken_patches), jax.random.key(1)
    flat = states.reshape(-1, states.shape[-1])
    other, ids = flat[::-1], rollout.tokens.reshape(-1)
    given = {"temperature": jnp.ones(ids.shape), "allowed": actor.allowed}
    head = actor.policy.head(actor.params)
    measures = {"KL": perception.view_kl, "JS": perception.view_js}

    def sampled():
        return actor.add_logprobs(rollout, "view", view, key).extra_logprobs

    def divergence(measure):
        found = actor.add_divergence(noted, "view", view, key, measure=measure)
        return found.divergences

    alone = {name: jax.jit(measure) for name, measure in measures.items()}
    return {
        "sampled": sampled,
        **{name: functools.partial(divergence, m) for name, m in measures.items()},
        "states": lambda: read(actor.params, *rows),
        "head, sampled": functools.partial(
            jax.jit(linear_head), flat, head, ids, **given
        ),
        **{
            f"head, {name}": functools.partial(run, flat, other, head, **given)
            for name, run in alone.items()
        },
    }


def main() -> None:
    """Prints the table of BENCHMARKS.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    every = runs(*arguments(chosen.responses))
    seconds = {name: [] for name in every}
    for run in every.values():
        jax.block_until_ready(run())
    for _ in range(chosen.rounds):
        for name, run in every.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    for name, taken in seconds.items():
        base = seconds["head, sampled" if name.startswith("head") else "sampled"]
        pairs = np.array(taken) / np.array(base)  # of one round: the same load
        print(f"| {name} | {np.median(taken):.2f} s | {np.median(pairs):.3f} |")
    pictures = (SIDE // SMALL.vision.factor) ** 2
    lengths = {"here": (SMALL, pictures, pictures + TEXT, pictures + TEXT)}
    lengths["7B"] = (REAL, 1024, 1280, 1280)
    for name, given in lengths.items():
        parts = operations(*given)
        one = parts["states"] + parts["head"]
        shares = [(parts["states"] + n * parts["head"]) / one for n in (2, 4)]
        print(
            f"{name}: states {parts['states']:.3g}, head {parts['head']:.3g} operations"
            f" a response; KL {shares[0]:.3f}, JS {shares[1]:.3f} of sampled"
        )
    print(f"jax {jax.__version__}, load {os.getloadavg()[0]:.0f}")


if __name__ == "__main__":
    main()
