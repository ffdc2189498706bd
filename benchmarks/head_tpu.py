"""The head compiled for TPUs that are not there: memory, and the static schedule.

    python benchmarks/head_tpu.py
    python benchmarks/head_tpu.py --chips v5e:2x2 --ops head --tile 512 1024

N = 16384 tokens, d = 3584, V = 152064 in bfloat16 (Qwen2.5-VL-7B), with libtpu but no
TPU: nothing is timed. A step of the kernel is one tile of logits and straight code, so
its bundles are counted exactly; `share` is how many of the matrix unit's slots they
fill. Bundles are given for 512 x 512 logits of each stream, to compare tiles: the share
alone also rises where the same products keep the unit busy for longer. Temporaries are
what XLA allocates beyond arguments and results.
"""

import argparse
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from vrl_kernels.linear_head import linear_head, linear_head_pair, pallas_tpu
from vrl_kernels.linear_head.backend import Backend

ROWS, WIDTH, VOCABULARY = 16384, 3584, 152064
DTYPE = "bfloat16"
CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
SCHEDULE = "final_hlo-static-per-bundle-utilization"


def arguments(streams: int, device: jax.Device) -> tuple:
    """Shapes of hidden states (1 or 2), weight, ids, temperature and allowed."""
    struct = functools.partial(
        jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device)
    )
    return (
        (struct((ROWS, WIDTH), DTYPE),) * streams,
        struct((VOCABULARY, WIDTH), DTYPE),
        struct((ROWS,), jnp.int32),
        struct((ROWS,), jnp.float32),
        struct((VOCABULARY,), bool),
    )


def head(streams, weight, ids, temperature, allowed, *, tiles) -> tuple:
    """Every statistic of the public function, with the kernel at these tiles."""
    kernel = Backend(
        functools.partial(pallas_tpu.states, tiles=tiles),
        functools.partial(pallas_tpu.pair_states, tiles=tiles),
    )
    function = linear_head if len(streams) == 1 else linear_head_pair
    return function(
        *streams,
        weight,
        ids,
        temperature=temperature,
        allowed=allowed,
        backend=kernel,
    )


def gradient(streams, weight, *rest, tiles) -> tuple:
    """A loss of the log-probabilities, and of the KL of a pair; its slopes as well.

    A token's weight is an argument, here its temperature: the compiler must not know.
    """
    _, temperature, _ = rest

    def loss(streams, weight):
        stats = head(streams, weight, *rest, tiles=tiles)
        per_token = stats.logprobs + (stats.kl if len(streams) == 2 else 0)
        return (temperature * per_token).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(streams, weight)


def schedule(folder: Path) -> tuple[float, int]:
    """Share of the matrix unit's slots, and bundles, of the one kernel dumped there."""
    (path,) = folder.glob(f"*{pallas_tpu.NAME}*{SCHEDULE}.txt")
    lines = path.read_text().splitlines()
    unit = [name.strip() for name in lines[1].split(",")].index("MATMUL")
    slots = int(lines[2].split()[unit])
    used = [int(line.split()[unit]) for line in lines[4:] if line.strip()]
    for file in folder.iterdir():  # room for the next one
        file.unlink()
    return sum(used) / (slots * len(used)), len(used)


def compiled(
    function: Callable, streams: int, device: jax.Device, tiles: pallas_tpu.Tiles
) -> jax.stages.Compiled:
    """`head` or `gradient`, ahead of time for this device."""
    step = jax.jit(functools.partial(function, tiles=tiles))
    return step.lower(*arguments(streams, device)).compile()


OPS = {"head": head, "gradient": gradient}


def rows(
    chip: str,
    streams: int,
    folder: Path,
    *,
    ops: Iterable[str] = OPS,
    tile: tuple[int, int] | None = None,
) -> list[dict]:
    """A row an op; what is dumped into `folder` is the schedule."""
    device = topologies.get_topology_desc(chip, platform="tpu").devices[0]
    shape = (ROWS, WIDTH, VOCABULARY)
    tiles = pallas_tpu.choose_tiles(device.device_kind, streams, *shape, DTYPE)
    if tile is not None:
        tiles = pallas_tpu.Tiles(*tile, WIDTH)
    found = []
    for op in ops:
        memory = compiled(OPS[op], streams, device, tiles).memory_analysis()
        share, bundles = schedule(folder)
        found.append(
            {
                "op": op,
                "streams": streams,
                "backend": "pallas_tpu",
                "chip": chip,
                "tile": [tiles.rows, tiles.columns],
                "milliseconds": None,
                "temporaries_bytes": memory.temp_size_in_bytes,
                "matrix_share": round(share, 4),
                "bundles": round(bundles * 512**2 / (tiles.rows * tiles.columns)),
            }
        )
    return found


def main() -> None:
    """Compiles for every chip, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=CHIPS)
    parser.add_argument("--streams", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--ops", nargs="+", choices=OPS, default=tuple(OPS))
    parser.add_argument("--tile", nargs=2, type=int, metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # it would dump nothing
    with tempfile.TemporaryDirectory() as folder:
        # libtpu reads them when it is loaded, at the first topology.
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
            f" --xla_jf_dump_llo_pass_label_regex={SCHEDULE}"
        )
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        results = [
            row
            for chip in given.chips
            for streams in given.streams
            for row in rows(chip, streams, Path(folder), ops=given.ops, tile=given.tile)
        ]
    print("| op | streams | chip | tile | share | bundles | temporaries |")
    print("|---|---|---|---|---|---|---|")
    for row in results:
        print(
            f"| {row['op']} | {row['streams']} | {row['chip']} | "
            f"{row['tile'][0]} x {row['tile'][1]} | {row['matrix_share']:.1%} | "
            f"{row['bundles']} | {row['temporaries_bytes'] / 1e6:.1f} MB |"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
