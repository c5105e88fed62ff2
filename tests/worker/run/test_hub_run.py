"""A run whose model lies on the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.worker.run.manifests import TINY, kubequant, manifest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testbed.hub import Hub


def test_the_commit_that_the_report_names_is_the_one_that_was_quantized(
    hub: Hub, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in TINY.iterdir()}
    looked_at = hub.add("owner/tiny", files)
    # The branch moves as soon as Preflight has looked.
    hub.on_listed = lambda: hub.push("owner/tiny", {**files, "generation_config.json": b"{}"})
    path = manifest(
        tmp_path,
        model={"uri": "hf://owner/tiny"},
        gguf={"types": ["Q4_0"]},
        evaluation={"skip": ["Perplexity", "Generations", "Performance"]},
    )

    ended = kubequant(
        "run", path, "--json", HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home")
    )

    assert ended.code == 0, ended.err
    assert hub.repositories["model", "owner/tiny"].commit != looked_at.commit
    assert ended.report["resolved"]["modelRevision"] == looked_at.commit
    assert ended.report["source"]["revision"] == looked_at.commit
