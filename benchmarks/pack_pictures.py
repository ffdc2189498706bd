"""The tower's time and rows for prompts with 0 to 6 pictures, by how they are packed.

    python benchmarks/pack_pictures.py

16 prompts, pictures of 56 to 196 pixels a side, Qwen2.5-VL's tower with its real
windows and patches at a width and depth for a CPU. Every layout is run in turn, several
times, and the medians are printed: a pack for each prompt with room for six pictures in
one stretch of attention, the same in blocks of the largest picture, and packs of
several prompts. The features are the same in all of them.
"""

import time

import jax
import numpy as np
from PIL import Image

from vrl_jax.engine.packing import Room, Unpadded, packed
from vrl_jax.models.parameters import init_params
from vrl_jax.models.qwen_vl.front_end import front_end
from vrl_jax.models.qwen_vl.parameters import parameter_table
from vrl_jax.models.qwen_vl.spec import QwenSpec, TextSpec, VisionSpec
from vrl_jax.models.qwen_vl.vision import encode_images

SPEC = QwenSpec(
    VisionSpec(2, 64, 2, 128, (1,), window=112),
    TextSpec(1, 32, 32, 4, 2, 256, rope_sections=(1, 1, 2)),
    tied=True,
)
PROMPTS, ROUNDS = 16, 3


def prompts() -> list[Unpadded]:
    """Each with as many pictures as chance gives it."""
    random, host, rows = np.random.default_rng(0), front_end(SPEC), []
    for _ in range(PROMPTS):
        sizes = random.integers(56, 197, (random.integers(0, 7), 2))
        pixels = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
        laid_out = tuple(host.lay_out(host.resize(Image.fromarray(p))) for p in pixels)
        tokens = np.full(sum(len(p.merged_index) for p in laid_out), host.image_token)
        rows.append(Unpadded(tokens, np.zeros((len(tokens), 3), np.int32), laid_out))
    return rows


def main() -> None:
    """Prints a row of BENCHMARKS.md for each layout."""
    rows, host = prompts(), front_end(SPEC)
    largest = max(size for row in rows for size in row.sizes)
    whole = max(sum(row.sizes) for row in rows)
    used = sum(sum(row.sizes) for row in rows)
    anything = tuple(range(100))
    rooms = {
        "a prompt, one stretch": Room((10**4,), whole, (1,), 1),
        "a prompt, blocks": Room((10**4,), largest, anything, 1),
        "4 prompts, blocks": Room((10**4,), largest, anything, 4),
        "4 prompts, blocks of 2": Room((10**4,), 2 * largest, anything, 4),
        "4 prompts, one stretch": Room((10**4,), 4 * whole, (1,), 4),
        "16 prompts, blocks": Room((10**4,), largest, anything, 16),
    }
    params = init_params(jax.random.key(0), parameter_table(SPEC))
    run = jax.jit(lambda params, images: encode_images(params, SPEC, images).main)
    tables = {name: packed(room, host, rows) for name, room in rooms.items()}
    seconds = {name: [] for name in rooms}
    for name in rooms:
        run(params, tables[name].images).block_until_ready()
    for _ in range(ROUNDS):
        for name, taken in seconds.items():
            start = time.perf_counter()
            run(params, tables[name].images).block_until_ready()
            taken.append(time.perf_counter() - start)
    first = np.median(seconds["a prompt, one stretch"])
    for name, taken in seconds.items():
        size, middle = tables[name].images.frames.size, np.median(taken)
        print(
            f"| {name} | {size} | {1 - used / size:.0%} | "
            f"{size * rooms[name].block / 1e6:.1f} M | {middle:.2f} s | "
            f"{first / middle:.1f} |"
        )
    print(f"{len(rows)} prompts, {used} patches; jax {jax.__version__}")


if __name__ == "__main__":
    main()
