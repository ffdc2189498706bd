"""Model folders: what is written is read back, and what is wrong is named."""

import json

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrl_jax.models import hub

from ..fixtures import folders
from .cases import EVERY, random_params, small_spec


class Words:
    eos_token_id, pad_token_id = 5, 4

    def save_pretrained(self, save_directory):
        with open(f"{save_directory}/tokenizer.json", "w") as file:
            file.write("{}")


@pytest.fixture
def folder(tmp_path):
    hub.save(tmp_path, small_spec(), random_params(small_spec(), 0), tokenizer=Words())
    return tmp_path


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_round_trip_keeps_every_bit(tmp_path, name, shard_bytes):
    spec, params = EVERY[name], random_params(EVERY[name], 1)
    hub.save(tmp_path, spec, params, shard_bytes=shard_bytes)
    read_spec, read = hub.load(tmp_path)
    assert read_spec == spec
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_bytes < 10**9)
    # Saving again over it leaves no file of the earlier layout behind.
    hub.save(tmp_path, spec, jax.tree.map(lambda p: p + 1, params))
    _, read = hub.load(tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, read, jax.tree.map(lambda p: p + 1, params)
    )


def test_dtype_is_kept_on_disk_and_chosen_on_load(tmp_path):
    spec = small_spec()
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), random_params(spec, 0))
    hub.save(tmp_path, spec, half)
    assert (
        json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    )
    _, kept = hub.load(tmp_path, dtype=jnp.bfloat16)
    _, wide = hub.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, kept, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype("float32")}


def test_sampling_settings_are_neutral(folder):
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings == {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "eos_token_id": [4, 5],
        "pad_token_id": 4,
    }


def test_companions_are_copied_and_sampling_is_not(folder, tmp_path):
    (folder / "chat_template.jinja").write_text("template")
    shipped = {"repetition_penalty": 1.05, "top_k": 1, "eos_token_id": [7]}
    (folder / "generation_config.json").write_text(json.dumps(shipped))
    target = tmp_path / "copy"
    hub.save(target, small_spec(), random_params(small_spec(), 0), copy_from=folder)
    assert (target / "chat_template.jinja").read_text() == "template"
    assert (target / "tokenizer.json").exists()
    settings = json.loads((target / "generation_config.json").read_text())
    assert settings["repetition_penalty"] == 1.0 and settings["eos_token_id"] == [7]


def test_what_ends_a_text_is_taken_from_the_configuration(folder, tmp_path):
    """Where there are no generation settings; its decoder's counts least."""
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"eos_token_id": [5, 7], "bos_token_id": None, "pad_token_id": None}
    config["text_config"] = {"eos_token_id": 9, "bos_token_id": 3}
    (folder / "config.json").write_text(json.dumps(config))
    params = random_params(small_spec(), 0)
    hub.save(tmp_path / "copy", small_spec(), params, copy_from=folder)
    for name in ("config.json", "generation_config.json"):
        told = json.loads((tmp_path / "copy" / name).read_text())
        assert told["eos_token_id"] == [5, 7] and told["bos_token_id"] == 3


def test_a_model_is_not_written_over_what_it_is_copied_from(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    params, again = random_params(small_spec(), 1), folder / ".." / folder.name
    with pytest.raises(ValueError, match=r"copied from.*name another folder"):
        hub.save(again, small_spec(), params, copy_from=folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"{", "config.json' is not valid JSON"),
        ("config.json", b"[]", "must hold a JSON object"),
        ("config.json", b'{"model_type": "llama"}', "model_type = 'llama'"),
        ("model.safetensors", None, "'model.safetensors' is missing"),
        ("model.safetensors", b"12345678", "'model.safetensors' is broken"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "../model.safetensors"}}',
            "'../model.safetensors' is missing",
        ),
    ],
)
def test_load_names_the_broken_file(folder, file, content, said):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        hub.load(folder)


def test_load_names_a_checkpoint_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    with pytest.raises(ValueError, match=r"embed_tokens.weight \(128, 64\), not \(99"):
        hub.load(folder)
    with pytest.raises(ValueError, match="no model folder 'nowhere'"):
        hub.load("nowhere")


def test_bounds_reach_a_processor_that_transformers_5_saved(tmp_path):
    """It keeps all of a processor in one file, and that one is read first."""
    source = tmp_path / "source"
    source.mkdir()
    old = {"image_processor": {"size": {"longest_edge": 9}, "patch_size": 14}, "x": 1}
    (source / hub.PROCESSOR).write_text(json.dumps(old))
    hub.save(
        tmp_path / "out",
        small_spec(),
        random_params(small_spec(), 0),
        copy_from=source,
        pixel_bounds=(784, 7840),
    )
    found = json.loads((tmp_path / "out" / hub.PROCESSOR).read_text())
    assert found["x"] == 1 and found["image_processor"]["patch_size"] == 14
    size = {"shortest_edge": 784, "longest_edge": 7840}
    assert found["image_processor"]["size"] == size
    assert json.loads((source / hub.PROCESSOR).read_text()) == old


def test_a_model_of_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    model = folders.model(tmp_path / "model")
    cached = tmp_path / "models--someone--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / ("0" * 40)).symlink_to(model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = hub.local("someone/small")
    assert (found / "config.json").read_text() == (model / "config.json").read_text()
    assert hub.local(model) == model
    with pytest.raises(ValueError, match="hf download someone/large --local-dir"):
        hub.local("someone/large")
    with pytest.raises(ValueError, match=r"There is no model folder '\./nowhere'"):
        hub.local("./nowhere")
