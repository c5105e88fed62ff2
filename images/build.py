"""Build the images with whichever of docker, podman and buildah is there, and say what is done.

Usage: python images/build.py NAME... (`all` for every image) [--registry PREFIX] [--push] ...

Each choice has a variable too, so that `make images KUBEQUANT_REGISTRY=example.com/team` works. An
image that others stand on is built before them. Where the cache holds the llama.cpp wheel of this
checkout, and the image's C library can load it, the build takes it instead of making it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "images" / "gguf" / "wheels"
TOOLS = ("docker", "podman", "buildah")
# What Debian 12, which the images stand on, has; a wheel made on a newer system may ask for more.
NEWEST_SYMBOLS = {b"GLIBC": (2, 36), b"GLIBCXX": (3, 4, 30)}


@dataclass(frozen=True)
class Image:
    """Where an image's recipe is, and which other image it stands on.

    `over` is one of ours; `foreign` tells in words of another's, which the recipe names. `for_vllm`
    says that vLLM serves what is made in it.
    """

    recipe: str
    over: str | None = None
    foreign: str = ""
    for_vllm: bool = False


# name -> how it is made; one that others stand on comes before them.
IMAGES = {
    "base": Image("images/base/Dockerfile"),
    "vllm": Image("images/vllm/Dockerfile", over="base"),
    "gguf": Image("images/gguf/Dockerfile", over="base"),
    "llmcompressor": Image("images/llmcompressor/Dockerfile", over="base", for_vllm=True),
    "gptqmodel": Image("images/gptqmodel/Dockerfile", over="base", for_vllm=True),
    "transformers": Image("images/transformers/Dockerfile", over="base", for_vllm=True),
    "auto-round": Image("images/auto-round/Dockerfile", over="base", for_vllm=True),
    "onnxruntime": Image("images/onnxruntime/Dockerfile", over="base"),
    "gptq-legacy": Image("images/gptq-legacy/Dockerfile", over="base"),
    "awq-legacy": Image("images/awq-legacy/Dockerfile", over="base"),
    "operator": Image("operator/Dockerfile"),
    # The last: without its base the others are built all the same.
    "tensorrt": Image(
        "images/tensorrt/Dockerfile",
        foreign="it stands on NVIDIA's image of TensorRT-LLM (nvcr.io), which has to be pulled; "
        "TENSORRT_LLM_IMAGE=base builds it over kubequant/base, for checkpoints without engines",
    ),
}
OUR_BASE = "base"
VLLM = "vllm"


@dataclass(frozen=True)
class Choices:
    """What the caller decides."""

    tool: str
    registry: str = ""
    python_image: str = ""
    torch_index_url: str = ""
    tensorrt_llm_image: str = ""
    """What holds TensorRT-LLM, or "base" for our own, which does not."""
    vllm: bool = False
    """Whether images whose artifacts vLLM serves hold it too, to verify with on a GPU."""
    options: tuple[str, ...] = ()
    """Words for the tool itself, such as --network=host."""


def say(text: str) -> None:
    """Print a line to standard error, so that standard output holds the references alone."""
    print(text, file=sys.stderr, flush=True)


def version() -> str:
    """Return the version of this checkout, which is every image's tag."""
    text = (ROOT / "operator" / "kubequant" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("operator/kubequant/__init__.py names no __version__")
    return found[1]


def reference(name: str, registry: str = "") -> str:
    """Return what an image is called: [registry/]kubequant/<name>:<version>."""
    prefix = f"{registry.rstrip('/')}/" if registry else ""
    return f"{prefix}kubequant/{name}:{version()}"


def below(name: str, choices: Choices) -> str | None:
    """Return which of our images the image `name` stands on."""
    image = IMAGES[name]
    if image.for_vllm and choices.vllm:
        return VLLM
    return OUR_BASE if image.foreign and choices.tensorrt_llm_image == OUR_BASE else image.over


def with_those_below(names: list[str], choices: Choices) -> list[str]:
    """Return `names` and what they stand on, in the order in which they are built."""
    wanted = set(IMAGES) - {VLLM} if "all" in names else set(names)
    for name in tuple(wanted):
        under = below(name, choices)
        while under:
            wanted.add(under)
            under = below(under, choices)
    return [name for name in IMAGES if name in wanted]


def build_command(name: str, choices: Choices) -> list[str]:
    """Return the command that builds the image `name`."""
    image, tag = IMAGES[name], reference(name, choices.registry)
    arguments = {"VERSION": version(), "REVISION": revision(), "SOURCE": source()}
    if choices.python_image:
        arguments["PYTHON_IMAGE"] = choices.python_image
    if name == "base" and choices.torch_index_url:
        arguments["TORCH_INDEX_URL"] = choices.torch_index_url
    under = below(name, choices)
    if under:
        place = reference(under, choices.registry)
        # podman and buildah file what has no registry under localhost, and look it up there.
        local = not choices.registry and choices.tool != "docker"
        argument = "TENSORRT_LLM_IMAGE" if image.foreign else "BASE_IMAGE"
        arguments[argument] = f"localhost/{place}" if local else place
    elif image.foreign and choices.tensorrt_llm_image:
        arguments["TENSORRT_LLM_IMAGE"] = choices.tensorrt_llm_image
    # buildah forgets each step where it is not told to keep them; the others keep them anyway.
    keep = ["--layers"] if choices.tool == "buildah" else []
    command = [choices.tool, "build", *keep, *choices.options]
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"]
    return [*command, "-f", str(ROOT / image.recipe), "-t", tag, str(ROOT)]


def revision() -> str:
    """Return the commit of this checkout, or "" outside of one."""
    return _git("rev-parse", "HEAD")


def source() -> str:
    """Return where this checkout comes from, if that is an address without credentials."""
    url = _git("config", "--get", "remote.origin.url")
    return url if url.startswith("https://") and "@" not in url else ""


def _git(*words: str) -> str:
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def find_tool(wanted: str) -> str:
    """Return the tool that is asked for, or the first one that works on this machine."""
    if wanted:
        if wanted not in TOOLS:
            raise SystemExit(f"{wanted!r} is none of {', '.join(TOOLS)}")
        return wanted
    tool = next((name for name in TOOLS if _works(name)), None)
    if tool is None:
        raise SystemExit(f"building images needs one of {', '.join(TOOLS)}; none works here")
    return tool


def _works(tool: str) -> bool:
    # The docker command may be there without an engine behind it.
    return (
        shutil.which(tool) is not None
        and subprocess.run([tool, "info"], capture_output=True, check=False).returncode == 0
    )


def hand_in_wheel() -> None:
    """Put the cached llama.cpp wheel where the build looks for one, or nothing at all."""
    place = ROOT / "images" / "gguf" / "wheel.py"
    specification = importlib.util.spec_from_file_location("kubequant_wheel", place)
    if specification is None or specification.loader is None:
        raise SystemExit(f"{place} cannot be loaded")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    kept: Path = script.cache_folder() / "wheels" / f"llama.cpp-{script.build_key()}"
    wheel = next(iter(kept.glob("*.whl")), None)
    if wheel is None:
        reason = "the cache holds no llama.cpp wheel"
    elif too_new := newer_symbols(wheel):
        reason = f"{wheel} needs {too_new}, which the image does not have"
    else:
        _put(wheel)
        return
    shutil.rmtree(WHEELS, ignore_errors=True)
    say(f"{reason}: it is built inside the image's build (4 to 7 minutes on two cores)")


def _put(wheel: Path) -> None:
    target = WHEELS / wheel.name
    if target.is_file() and target.read_bytes() == wheel.read_bytes():
        return
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir()
    shutil.copy2(wheel, target)
    say(f"taking the llama.cpp wheel of the cache: {wheel}")


def newer_symbols(wheel: Path) -> str:
    """Return a symbol version that a library of `wheel` needs and the images lack, or ""."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if ".so" not in Path(member).name:
                continue
            found = re.findall(rb"\0(GLIBC|GLIBCXX)_([0-9.]+)(?=\0)", archive.read(member))
            for name, number in found:
                if tuple(int(part) for part in number.split(b".")) > NEWEST_SYMBOLS[name]:
                    return f"{name.decode()}_{number.decode()}"
    return ""


def build(names: list[str], choices: Choices) -> list[str]:
    """Build `names` and what they stand on; return the references of `names`."""
    order = with_those_below(names, choices)
    if "gguf" in order:
        hand_in_wheel()
    for name in order:
        command = build_command(name, choices)
        say(f"building {reference(name, choices.registry)}: {' '.join(command)}")
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            raise SystemExit(_failed(name, choices))
    return [reference(name, choices.registry) for name in order]


def _failed(name: str, choices: Choices) -> str:
    told = f"building {name} with {choices.tool} failed; its words are above"
    foreign = IMAGES[name].foreign
    return f"{told}; {foreign}" if foreign and below(name, choices) is None else told


def main() -> None:
    """Build what the command line names, and print the references."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=[*IMAGES, "all"], metavar="NAME")
    environ = os.environ.get
    parser.add_argument(
        "--tool", default=environ("KUBEQUANT_IMAGE_TOOL", ""), help=" or ".join(TOOLS)
    )
    parser.add_argument(
        "--registry",
        default=environ("KUBEQUANT_REGISTRY", ""),
        help="a prefix such as example.com/team",
    )
    parser.add_argument(
        "--python-image", default=environ("PYTHON_IMAGE", ""), help="what the images stand on"
    )
    parser.add_argument(
        "--torch-index-url",
        default=environ("TORCH_INDEX_URL", ""),
        help="the package index that torch comes from, such as one of CPU builds",
    )
    parser.add_argument(
        "--tensorrt-llm-image",
        default=environ("TENSORRT_LLM_IMAGE", ""),
        help="what tensorrt stands on instead of NVIDIA's image; base for kubequant/base",
    )
    parser.add_argument(
        "--vllm",
        action="store_true",
        default=bool(environ("KUBEQUANT_VLLM", "")),
        help="put vLLM into the images whose artifacts it serves, to verify with on a GPU",
    )
    parser.add_argument(
        "--option", action="append", default=[], help="a word for the tool, such as --network=host"
    )
    parser.add_argument("--push", action="store_true", help="push what was built")
    words = parser.parse_args()
    choices = Choices(
        tool=find_tool(words.tool),
        registry=words.registry,
        python_image=words.python_image,
        torch_index_url=words.torch_index_url,
        tensorrt_llm_image=words.tensorrt_llm_image,
        vllm=words.vllm,
        options=tuple(words.option),
    )
    references = build(words.names, choices)
    for one in references:
        if words.push:
            say(f"pushing {one}")
            subprocess.run([choices.tool, "push", one], stdout=sys.stderr, check=True)
        print(one)


if __name__ == "__main__":
    main()
