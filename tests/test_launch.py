"""The examples of starting a script elsewhere: they parse, and their flags exist."""

import inspect
import math
import re
import subprocess
from pathlib import Path

import pytest
import tyro
import yaml

from tests.test_experiments import script
from vrl_jax.models.sharding import parse_axes

FOLDER = Path(__file__).parents[1] / "experiments" / "launch"
SHELL = ("tpu_pod.sh", "slurm.sbatch")


def written(name):
    """The flags of the script in a file, shell variables as something of their kind."""
    text = (FOLDER / name).read_text()
    if name.endswith(".yaml"):
        return container(text)["command"][1:]
    text = re.sub(r"\$\{MESH:-([^}]*)\}", r"\1", text).replace("\\\n", " ")
    mesh = re.search(r"^MESH=(\S+)", text, re.M)
    (line,) = re.findall(r"experiments/vppo_tiny_digits\.py\"? .*", text)
    line = line.replace("$MESH", mesh[1] if mesh else "").replace("$RUN", "runs")
    return line.replace('"', "").split()


def container(text):
    pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    return pod["template"]["spec"]["containers"][0]


def devices(name):
    """How many there are where the file asks for them."""
    text = (FOLDER / name).read_text()
    if name == "slurm.sbatch":
        found = re.findall(r"^#SBATCH --(?:nodes|gpus-per-node)=(\d+)", text, re.M)
        tasks = re.search(r"^#SBATCH --ntasks-per-node=(\d+)", text, re.M)
        assert tasks[1] == found[1]  # a process a GPU
        return math.prod(map(int, found))
    if name == "tpu_pod.sh":
        cores = re.search(r"^TYPE=\$\{TYPE:-v5p-(\d+)\}", text, re.M)
        return int(cores[1]) // 2  # v5p is named by its cores, two a chip
    job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pods = job["template"]["spec"]
    topology = pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container(text)["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"]
    assert chips * job["completions"] == math.prod(map(int, topology.split("x")))
    return chips * job["completions"]


@pytest.mark.parametrize("name", [*SHELL, "jobset.yaml"])
def test_flags_and_mesh(name):
    path, *flags = written(name)
    stem = re.fullmatch(r"experiments/(\w+)\.py", path)[1]
    main = script(stem).main
    given = {}

    def kept(**arguments):
        given.update(arguments)

    kept.__signature__ = inspect.signature(main)
    kept.__doc__, kept.__annotations__ = main.__doc__, main.__annotations__
    tyro.cli(kept, args=flags)
    assert math.prod(parse_axes(given["mesh"]).values()) == devices(name)
    assert "VRL_JAX_PROCESSES" in (FOLDER / name).read_text()


@pytest.mark.parametrize("name", SHELL)
def test_shell_parses(name):
    done = subprocess.run(["bash", "-n", FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_jobset_is_one():
    found = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert container((FOLDER / "jobset.yaml").read_text())["env"] == [
        {"name": "VRL_JAX_PROCESSES", "value": "auto"}
    ]


def test_readme_names_every_file():
    text = (FOLDER / "README.md").read_text()
    for file in FOLDER.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in text
