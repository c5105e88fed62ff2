"""Fixtures of the images tier: each image built once a session and its root file system mounted."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.images.containers import Container
from tests.testbed import packages
from tests.testbed.images import build_image, configuration, mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Built:
    """An image that was built, with its root file system and its `config`."""

    reference: str
    root: Path
    image: dict[str, Any]


@pytest.fixture(scope="session")
def built() -> Iterator[Callable[[str], Built]]:
    """Build an image by its name, where the cache does not hold it, and mount it."""
    packages.install()
    known: dict[str, Built] = {}
    with ExitStack() as stack:

        def build(name: str) -> Built:
            if name not in known:
                reference = build_image(name)
                root = stack.enter_context(mounted(reference))
                known[name] = Built(reference, root, configuration(reference))
            return known[name]

        yield build


@pytest.fixture
def container(built: Callable[[str], Built], tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Make a container of an image; it is gone when the test is over."""
    made: list[Container] = []

    def make(name: str, **what: Any) -> Container:
        image = built(name)
        bundle = tmp_path / f"bundle-{len(made)}"
        made.append(Container(root=image.root, image=image.image, bundle=bundle, **what))
        return made[-1]

    yield make
    for one in made:
        one.remove()
