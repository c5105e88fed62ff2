"""What every image is like: who it runs as, what it says of itself, what it holds and does not."""

from __future__ import annotations

import os
import re
import stat
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.testbed.images import layer_sizes_bytes

from kubequant import __version__

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.images.conftest import Built
    from tests.images.containers import Container

ROOT = Path(__file__).parents[2]
IMAGES = (
    "base", "gguf", "llmcompressor", "gptqmodel", "transformers", "auto-round", "onnxruntime",
    "gptq-legacy", "awq-legacy", "operator", "tensorrt",
)  # fmt: skip
STARTED = {
    "gguf": "kubequant_worker",
    "llmcompressor": "kubequant_worker",
    "gptqmodel": "kubequant_worker",
    "transformers": "kubequant_worker",
    "auto-round": "kubequant_worker",
    "onnxruntime": "kubequant_worker",
    "gptq-legacy": "kubequant_worker",
    "awq-legacy": "kubequant_worker",
    "operator": "kubequant.controller",
    # Over our own base: NVIDIA's comes from a registry.
    "tensorrt": "kubequant_worker",
}
TITLES = "org.opencontainers.image"
TEMPORARY = {"/tmp", "/var/tmp", "/run/lock", "/var/lock"}  # noqa: S108 -- the images' own
# What a change of our own code makes anew, with room to grow.
SMALL_BYTES = 8_000_000


def entries(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every entry of a root file system but links, by its path in the image."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            found = path.lstat()
            if not stat.S_ISLNK(found.st_mode):
                yield f"/{path.relative_to(root)}", found


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_what_it_is(built: Callable[[str], Built], name: str) -> None:
    labels = built(name).image["Labels"]

    assert labels[f"{TITLES}.title"] == f"kubequant {name}"
    assert labels[f"{TITLES}.version"] == __version__
    assert labels[f"{TITLES}.licenses"] == "Apache-2.0"
    assert labels[f"{TITLES}.description"]
    assert re.fullmatch("[0-9a-f]{40}", labels[f"{TITLES}.revision"])


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_a_number_that_is_not_root(
    built: Callable[[str], Built], name: str
) -> None:
    # By a name, the kubelet could not tell that it is not root.
    assert built(name).image["User"] == "65532:65532"


@pytest.mark.parametrize("name", STARTED)
def test_an_image_starts_our_program_without_a_shell(
    built: Callable[[str], Built], name: str
) -> None:
    assert built(name).image["Entrypoint"] == ["python", "-m", STARTED[name]]
    assert not built(name).image.get("Cmd")


@pytest.mark.parametrize("name", IMAGES)
def test_any_user_can_read_what_is_ours_and_nobody_can_write_it(
    built: Callable[[str], Built], name: str
) -> None:
    root = built(name).root
    ours = [(path, found) for path, found in entries(root) if path.startswith("/opt/kubequant")]
    assert ours

    readable = stat.S_IROTH
    assert [path for path, found in ours if not found.st_mode & readable] == []
    assert [path for path, found in ours if found.st_uid or found.st_gid] == []
    assert [path for path, found in ours if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)] == []


@pytest.mark.parametrize("name", IMAGES)
def test_only_folders_for_temporary_files_are_open_to_everybody(
    built: Callable[[str], Built], name: str
) -> None:
    writable = {path for path, found in entries(built(name).root) if found.st_mode & stat.S_IWOTH}

    assert {path for path in writable if not path.startswith("/dev/")} <= TEMPORARY


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_imported_was_compiled_when_the_image_was_built(
    built: Callable[[str], Built], name: str
) -> None:
    packages = built(name).root / "opt/kubequant/lib/python3.11/site-packages"
    expected = {"base": "boto3", **STARTED, "operator": "kubequant"}[name]

    sources = {path.stem for path in (packages / expected).glob("*.py")}
    compiled = {
        path.name.split(".")[0] for path in (packages / expected / "__pycache__").glob("*.pyc")
    }

    assert sources
    assert sources == compiled


def test_the_operator_image_holds_no_engine_and_no_installer(
    built: Callable[[str], Built],
) -> None:
    packages = built("operator").root / "opt/kubequant/lib/python3.11/site-packages"
    there = {path.name for path in packages.iterdir()}

    assert {"kopf", "kubernetes", "kubequant"} <= there
    assert there & {"torch", "transformers", "llama_cpp", "matplotlib", "nvidia", "pip"} == set()
    assert "setuptools" not in there


@pytest.mark.parametrize(
    ("name", "pins"),
    [
        ("base", ("images/base/constraints.txt",)),
        ("gguf", ("images/gguf/constraints.txt",)),
        # What the base has for a newer huggingface_hub stays in the layer below.
        (
            "llmcompressor",
            ("images/base/constraints.txt", "images/llmcompressor/constraints.txt"),
        ),
        ("gptqmodel", ("images/base/constraints.txt", "images/gptqmodel/constraints.txt")),
        ("transformers", ("images/transformers/constraints.txt",)),
        ("auto-round", ("images/base/constraints.txt", "images/auto-round/constraints.txt")),
        ("onnxruntime", ("images/base/constraints.txt", "images/onnxruntime/constraints.txt")),
        ("gptq-legacy", ("images/base/constraints.txt", "images/gptq-legacy/constraints.txt")),
        ("awq-legacy", ("images/base/constraints.txt", "images/awq-legacy/constraints.txt")),
        ("operator", ("operator/constraints.txt",)),
        ("tensorrt", ("images/base/constraints.txt", "images/tensorrt/constraints.txt")),
    ],
)
def test_an_image_holds_the_pinned_versions_and_nothing_else(
    built: Callable[[str], Built], name: str, pins: tuple[str, ...]
) -> None:
    packages = built(name).root / "opt/kubequant/lib/python3.11/site-packages"
    lines = [line for file in pins for line in (ROOT / file).read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))

    # What an older pip installs of an sdist has no dist-info; this finds both.
    held = {
        re.sub("[-_.]+", "-", one.name).lower(): one.version
        for one in distributions(path=[str(packages)])
    }
    ours = {"kubequant": __version__, "pip": held.get("pip"), "setuptools": held.get("setuptools")}

    assert {key: value for key, value in held.items() if key not in ours} == {
        key: value for key, value in pinned.items() if key not in ours
    }


@pytest.mark.parametrize("name", STARTED)
def test_our_own_code_is_a_small_layer_on_top(built: Callable[[str], Built], name: str) -> None:
    sizes = [size for size in layer_sizes_bytes(built(name).reference) if size > 100_000]

    assert sizes[-1] < SMALL_BYTES


@pytest.mark.parametrize("name", STARTED)
def test_whoever_runs_an_image_has_a_name(container: Callable[..., Container], name: str) -> None:
    # kopf and torch ask for it, and a cluster may choose any number.
    asked = ["python", "-c", "import getpass; print(getpass.getuser())"]

    done = container(name, words=asked, user=1_000_650_000).run(60)

    assert done.stdout == "kubequant\n", done.stderr


def test_the_operator_lists_its_settings(container: Callable[..., Container]) -> None:
    done = container("operator", words=["python", "-m", "kubequant.controller", "--help"]).run(60)

    assert done.returncode == 0, done.stderr
    assert "KUBEQUANT_OPERATOR_NAMESPACES" in done.stdout


def test_the_operator_says_in_a_sentence_that_there_is_no_cluster(
    container: Callable[..., Container],
) -> None:
    done: subprocess.CompletedProcess[str] = container("operator").run(60)

    assert done.returncode == 2
    assert "there is no cluster to work on" in done.stderr
    assert "Traceback" not in done.stderr
