"""Model folders in the layout of the Hugging Face hub: read and written.

Only safetensors and JSON are touched; nothing from a folder is ever executed.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx
import jax.numpy as jnp
import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vrl_jax.models.families import Spec, family_from_config, family_of
from vrl_jax.models.parameters import from_checkpoint, to_checkpoint
from vrl_jax.models.policy import Params
from vrl_jax.models.streaming import FileTensor

LOG = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What surrounds the weights; config, weights and generation settings are ours.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
BOUNDS = ("min_pixels", "max_pixels", "size")
"""What of a processor's settings bounds the area of pictures."""

PROCESSOR = "processor_config.json"
"""Where transformers 5 keeps them, under `image_processor`, and looks first."""

DOWNLOADED = ("*.safetensors", INDEX, *COMPANIONS, "config.json", GENERATION)


class Tokenizer(Protocol):
    """What `save` asks of a tokenizer."""

    eos_token_id: int | None
    pad_token_id: int | None

    def save_pretrained(self, save_directory: str) -> Any:
        """Writes the tokenizer's files."""


def load(
    folder: str | Path,
    *,
    dtype: jnp.dtype = jnp.float32,
    shardings: Params | None = None,
) -> tuple[Spec, Params]:
    """The model of a folder, its params on the devices.

    `shardings` is a tree like the params (`parameters.logical_axes` gives the axes);
    without it all goes to the default device. Tensors are read one at a time, each
    device's part alone, so the host needs room for one of them, not for the model.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    table = family_of(spec).parameter_table(spec)
    try:
        return spec, from_checkpoint(_tensors(folder), table, dtype, shardings)
    except ValueError as error:
        raise ValueError(f"Cannot load {str(folder)!r}: {error}") from error


def read_spec(folder: str | Path) -> Spec:
    """The shape of a folder's model; weights are not looked at."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no model folder {str(folder)!r}.")
    config = _json(folder / "config.json")
    try:
        return family_from_config(config).spec_from_config(config)
    except ValueError as error:
        raise ValueError(f"Cannot load {str(folder)!r}: {error}") from error


def local(model: str | Path) -> Path:
    """The folder of a model: itself, or where the hub's model of this name now lies.

    `owner/name` is taken from the hub's cache, whatever is newer, and downloaded if it
    is not there: weights, JSON and templates, no code. `ValueError` where neither is to
    be had.
    """
    if Path(model).is_dir():
        return Path(model)
    name = str(model)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"There is no model folder {name!r} (this is {Path.cwd()}).")
    wanted = [*DOWNLOADED]
    with contextlib.suppress(OSError, HFValidationError):
        cached = snapshot_download(name, allow_patterns=wanted, local_files_only=True)
        if _complete(Path(cached)):
            return Path(cached)
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, OSError, httpx.HTTPError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"There is no folder {name!r} here, and the hub did not give it "
            f"({type(error).__name__}: {reason[:300]}). Give the path of a folder: hf "
            f"download {name} --local-dir FOLDER makes one where there is a network."
        ) from error


def _complete(folder: Path) -> bool:
    """Configuration, tokenizer and all weights are there."""
    weights = {WEIGHTS}
    if (folder / INDEX).is_file():
        weights = {*_json(folder / INDEX).get("weight_map", {"": WEIGHTS}).values()}
    needed = (*weights, "config.json", "tokenizer_config.json")
    return all((folder / name).is_file() for name in needed)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{str(path.parent)!r} has no {path.name}: it is no complete model folder."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object.")
    return content


def _tensors(folder: Path) -> dict[str, FileTensor]:
    """All tensors of a folder by name; none is read yet."""
    if (folder / INDEX).exists():
        places = _json(folder / INDEX).get("weight_map")
        if not isinstance(places, Mapping):
            raise ValueError(f"{INDEX} has no weight_map.")
        files = sorted(set(places.values()))
    else:
        files = [WEIGHTS]
    tensors = {}
    for name in files:
        # A shard is a plain name: an index must not reach outside its folder.
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"the weights file {name!r} is missing.")
        try:
            with safe_open(path, framework="numpy") as file:
                for tensor in file.keys():  # noqa: SIM118  (no iterator of its own)
                    shape = tuple(file.get_slice(tensor).get_shape())
                    tensors[tensor] = FileTensor(path, tensor, shape)
        except SafetensorError as error:
            raise ValueError(f"{name!r} is broken: {error}.") from error
    return tensors


def save(
    folder: str | Path,
    spec: Spec,
    params: Params,
    *,
    tokenizer: Tokenizer | None = None,
    copy_from: str | Path | None = None,
    pixel_bounds: tuple[int, int] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that `load`, transformers and vLLM read.

    Tokenizer, template and processor files come from `copy_from`, those of `tokenizer`
    over them. Sampling settings are neutral: the released ones (repetition penalty,
    nearly greedy) would hide the policy that was trained. Weights keep their dtype.
    `pixel_bounds` bound a picture's area; those of `copy_from`, or the released ones,
    if not given. What the model's family does not have, such as critics, is left out,
    and a warning says so.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    for name in COMPANIONS if copy_from else ():
        if (source := Path(copy_from, name)).is_file():
            shutil.copyfile(source, folder / name)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    family = family_of(spec)
    for name, content in family.processor_settings(spec, pixel_bounds).items():
        if not (folder / name).is_file() or not copy_from:
            _write_json(folder / name, content)
        elif pixel_bounds:
            _write_json(folder / name, _json(folder / name) | _bounds(content))
        newer = folder / PROCESSOR
        if pixel_bounds and newer.is_file() and "image_processor" in _json(newer):
            whole = _json(newer)
            whole["image_processor"] |= _bounds(content)
            _write_json(newer, whole)
    generation = _generation(tokenizer, copy_from)
    _write_json(folder / GENERATION, generation)
    config = family.config_from_spec(spec) | {
        name: generation.get(name) for name in ENDS
    }
    config["torch_dtype"] = str(params["text"]["embedding"].dtype)
    _write_json(folder / "config.json", config)
    table = family.parameter_table(spec)
    if beside := params.keys() - {row.path.split("/")[0] for row in table}:
        LOG.warning(
            "%s holds the model without its %s, which transformers has no place for",
            folder,
            ", ".join(sorted(beside)),
        )
    tensors = to_checkpoint(params, table)
    _write_weights(folder, tensors, shard_bytes)


def _bounds(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in BOUNDS if key in settings}


def _generation(
    tokenizer: Tokenizer | None, copy_from: str | Path | None
) -> dict[str, Any]:
    """Temperature 1 and nothing else; which tokens end a text is kept."""
    settings: dict[str, Any] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
    }
    if tokenizer is not None:
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        known = {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id}
    elif copy_from and Path(copy_from, GENERATION).is_file():
        known = _json(Path(copy_from, GENERATION))
    else:
        known = {}
    kept = {name: known[name] for name in ENDS if known.get(name) is not None}
    return settings | kept


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_weights(
    folder: Path, tensors: Iterator[tuple[str, np.ndarray]], shard_bytes: int
) -> None:
    """One file, or shards of at most `shard_bytes` (or one tensor) and an index."""
    shards: list[dict[str, int]] = []
    shard: dict[str, np.ndarray] = {}

    def flush() -> None:
        save_file(shard, folder / f"model-{len(shards)}.part", {"format": "pt"})
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
        shard.clear()

    for name, tensor in tensors:
        size = sum(held.nbytes for held in shard.values())
        if shard and size + tensor.nbytes > shard_bytes:
            flush()
        shard[name] = tensor
    flush()
    if len(shards) == 1:
        (folder / "model-0.part").rename(folder / WEIGHTS)
        return
    places = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"model-{number}.part").rename(folder / file)
        places |= dict.fromkeys(names, file)
    total = sum(sum(names.values()) for names in shards)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / INDEX, index)
