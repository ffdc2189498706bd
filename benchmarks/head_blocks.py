"""The backward pass of the head by what runs together: milliseconds and memory.

    python benchmarks/head_blocks.py

Gradients of the log-probs, with two streams of KL(p||q) as well, at N = 16384, d =
3584, V = 152064 in bfloat16, forward pass included; all tokens train, or the share that
is named. Medians of five runs. On a CPU give --rows, --width and --vocabulary.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
from vrl_kernels.linear_head import gradient, linear_head, linear_head_pair
from vrl_kernels.linear_head.gradient import Blocks

TRIED = {
    1: [(2048, 2816), (2048, 8192)],
    2: [(1024, 2048), (2048, 4096), (2048, 8192)],
}
"""Streams -> rows of a stream, at most an eighth of all, and of the weight."""
SHARES = (1.0, 0.4, 0.1)


def inputs(rows: int, width: int, vocabulary: int) -> tuple[jax.Array, ...]:
    """hidden, other, weight, ids: logits of std 2, streams a tenth apart."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (rows, width))
    other = hidden + 0.1 * jax.random.normal(keys[1], hidden.shape)
    weight = jax.random.normal(keys[2], (vocabulary, width), jnp.bfloat16)
    ids = jax.random.randint(keys[3], (rows,), 0, vocabulary)
    weight = (weight * 2 / width**0.5).astype(jnp.bfloat16)
    return hidden.astype(jnp.bfloat16), other.astype(jnp.bfloat16), weight, ids


def loss(streams: int, hidden, other, weight, ids, cotangents) -> jax.Array:
    """The sum whose gradients are taken."""
    if streams == 1:
        return (cotangents * linear_head(hidden, weight, ids).logprobs).sum()
    stats = linear_head_pair(hidden, other, weight, ids)
    return (cotangents * (stats.logprobs + stats.kl)).sum()


def milliseconds(function, *arguments) -> float:
    """Median of five, the first left out."""
    spent = []
    for _ in range(6):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        spent.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(spent[1:])


def main() -> None:
    """A row for each size of blocks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--vocabulary", type=int, default=152064)
    given = parser.parse_args()
    arrays = inputs(given.rows, given.width, given.vocabulary)
    order = jax.random.permutation(jax.random.key(1), given.rows)
    print(jax.devices()[0].device_kind, "jax", jax.__version__, vars(given))
    print("| streams | rows, ids | all | 40 % | 10 % | temporaries |")
    print("|---|---|---|---|---|---|")
    for streams, tried in TRIED.items():
        wanted = (0, 2) if streams == 1 else (0, 1, 2)
        for tokens, ids in tried:
            blocks = Blocks(tokens, ids)
            gradient.ONE = gradient.PAIR = gradient.GPU = blocks
            slopes = jax.grad(functools.partial(loss, streams), argnums=wanted)
            run = jax.jit(slopes).lower(*arrays, jnp.ones(given.rows)).compile()
            times = [
                milliseconds(run, *arrays, jnp.float32(order < share * given.rows))
                for share in SHARES
            ]
            cells = " | ".join(f"{one:.1f} ms" for one in times)
            used = run.memory_analysis().temp_size_in_bytes / 1e9
            print(f"| {streams} | {tokens}, {ids} | {cells} | {used:.3f} GB |")


if __name__ == "__main__":
    main()
