"""The images that the operator may ask for are images that this repository builds."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kubequant.api.engines import ENGINES
from kubequant.controller.catalog import IMAGES, ImageKey
from kubequant.controller.settings import DEFAULT_IMAGES

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]


def build_script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("build", ROOT / "images" / "build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # A dataclass asks for the module that it was made in.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("key", ImageKey)
def test_every_image_of_the_catalog_is_built_from_pins_of_its_own(key: ImageKey) -> None:
    recipe = build_script().IMAGES[key.value].recipe
    assert recipe == f"images/{key}/Dockerfile"
    assert (ROOT / recipe).is_file()
    assert (ROOT / "images" / key / "constraints.txt").is_file()
    assert f"!images/{key}\n" in (ROOT / ".dockerignore").read_text()
    assert f"| `kubequant/{key}` |" in (ROOT / "images" / "README.md").read_text()


@pytest.mark.parametrize(
    ("image", "registry", "tool", "stands_on", "built"),
    [
        pytest.param("", "", "docker", None, ["tensorrt"], id="NVIDIA's, as the recipe names it"),
        pytest.param(
            "mirror.example/trtllm:1.2.1", "", "docker", "mirror.example/trtllm:1.2.1",
            ["tensorrt"], id="a mirror of it",
        ),
        pytest.param(
            "base", "", "buildah", "localhost/kubequant/base:", ["base", "tensorrt"], id="our base",
        ),
        pytest.param(
            "base", "example.com/team", "docker", "example.com/team/kubequant/base:",
            ["base", "tensorrt"], id="our base in a registry",
        ),
    ],
)  # fmt: skip
def test_tensorrt_stands_on_nvidias_image_or_on_what_is_named(
    image: str, registry: str, tool: str, stands_on: str | None, built: list[str]
) -> None:
    script = build_script()
    choices = script.Choices(tool=tool, registry=registry, tensorrt_llm_image=image)
    command = script.build_command("tensorrt", choices)
    named = [word for word in command if word.startswith("TENSORRT_LLM_IMAGE=")]

    assert script.with_those_below(["tensorrt"], choices) == built
    assert [word.partition("=")[2].startswith(stands_on or "") for word in named] == (
        [True] if stands_on else []
    )
    assert not [word for word in command if word.startswith("BASE_IMAGE=")]


@pytest.mark.parametrize("name", ["llmcompressor", "gptqmodel", "transformers", "auto-round"])
def test_with_vllm_what_it_serves_stands_on_an_image_that_holds_it(name: str) -> None:
    script = build_script()
    choices = script.Choices(tool="docker", registry="example.com/team", vllm=True)
    version = script.version()

    assert script.with_those_below([name], choices) == ["base", "vllm", name]
    words = script.build_command(name, choices)
    assert f"BASE_IMAGE=example.com/team/kubequant/vllm:{version}" in words
    words = script.build_command("vllm", choices)
    assert f"BASE_IMAGE=example.com/team/kubequant/base:{version}" in words
    assert script.with_those_below([name], script.Choices(tool="docker")) == ["base", name]


def test_an_image_whose_artifacts_vllm_serves_can_hold_it_unless_its_torch_is_another() -> None:
    served = {
        IMAGES[engine.name].key.value
        for engines in ENGINES.values()
        for engine in engines
        if "vLLM" in engine.served_by
    }
    holding = {name for name, image in build_script().IMAGES.items() if image.for_vllm}

    assert served - holding == {"gptq-legacy", "awq-legacy", "tensorrt"}
    assert holding <= served


def test_with_vllm_all_images_are_built_and_the_others_stand_where_they_did() -> None:
    script = build_script()
    choices = script.Choices(tool="docker", vllm=True)

    assert script.with_those_below(["all"], choices) == list(script.IMAGES)
    assert script.with_those_below(["gguf"], choices) == ["base", "gguf"]


def test_what_vllm_shares_with_the_base_has_the_base_s_versions() -> None:
    def heavy(image: str, name: str) -> set[str]:
        lines = (ROOT / "images" / image / name).read_text().splitlines()
        return {line for line in lines if re.match("(torch|triton|cuda-|nvidia-)", line)}

    shared = heavy("base", "torch.txt")
    assert shared <= heavy("vllm", "constraints.txt")
    for name in ("llmcompressor", "gptqmodel", "transformers", "auto-round"):
        assert shared <= heavy(name, "constraints.txt")


def test_all_other_images_are_built_before_the_one_that_stands_on_anothers() -> None:
    script = build_script()
    order = script.with_those_below(["all"], script.Choices(tool="docker"))

    assert order[-1] == "tensorrt"
    assert set(order) == set(script.IMAGES) - {"vllm"}  # which only those need that ask for it


def test_a_base_that_cannot_be_pulled_ends_with_the_way_out(tmp_path: Path) -> None:
    script = build_script()
    failing = tmp_path / "tool"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)

    with pytest.raises(SystemExit, match=r"nvcr\.io.*TENSORRT_LLM_IMAGE=base"):
        script.build(["tensorrt"], script.Choices(tool=str(failing)))
    with pytest.raises(SystemExit) as ours:
        script.build(["base"], script.Choices(tool=str(failing)))
    assert "nvcr.io" not in str(ours.value)


@pytest.mark.parametrize("key", [*ImageKey, "base"])
def test_the_pins_of_an_image_hold_all_that_the_worker_itself_needs(key: str) -> None:
    # An environment is made of the pins alone, and a page of every run is drawn in it.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split("[^A-Za-z0-9_.-]", line)[0] for line in project["dependencies"]}
    lines = (ROOT / "images" / key / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    needs_of_matplotlib = {"contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing"}

    assert {canonical(name) for name in asked | needs_of_matplotlib} <= set(map(canonical, pinned))


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_every_image_of_the_catalog_has_a_name_by_default() -> None:
    assert set(DEFAULT_IMAGES) == set(ImageKey)


@pytest.mark.parametrize("key", ImageKey)
def test_a_package_is_built_by_the_setuptools_that_it_asks_for(key: ImageKey) -> None:
    bound = runpy.run_path(str(ROOT / "images" / "environment.py"))["build_constraints"]
    pins = (ROOT / "images" / key / "constraints.txt").read_text().splitlines()
    building = bound("\n".join(pins)).splitlines()
    assert [pin for pin in pins if pin not in building] == [
        pin for pin in pins if pin.startswith("setuptools==")
    ]
