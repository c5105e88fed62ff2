"""A manifest on a laptop: what is published, what a second run does, what gates do."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import llama_cpp
import pytest
import yaml
from huggingface_hub import ModelCard
from tests.worker.run.commands import commands_of, typed
from tests.worker.run.documents import assert_documents_are_sound
from tests.worker.run.manifests import TINY, Ended, files_below, kubequant, manifest

from kubequant.api.contract import RunReport
from kubequant.api.problems import parse_json
from kubequant_worker.card import model_card

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Ended]:
    """One run with an importance matrix: (its manifest, the artifact's folder, how it ended)."""
    folder = tmp_path_factory.mktemp("published")
    path = manifest(
        folder,
        gguf={"types": ["Q8_0", "Q2_K"], "importanceMatrix": True},
        gates=[{"metric": "PerplexityIncreasePercent", "max": "2.0", "variant": "Q8_0"}],
    )
    ended = kubequant("run", path, "--json")
    assert ended.code == 0, ended.err
    return path, next((folder / "out" / "tiny").iterdir()), ended


def test_the_manifest_names_every_file_with_its_true_digest(
    published: tuple[Path, Path, Ended],
) -> None:
    _, artifact, _ = published
    files = files_below(artifact)
    listed = {
        entry["path"]: (entry["size"], entry["sha256"])
        for entry in json.loads(files.pop("manifest.json"))["files"]
    }

    assert listed == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }
    assert set(files) == {
        "README.md",
        "imatrix.gguf",
        "provenance.json",
        "report.html",
        "report.json",
        "tiny-Q2_K.gguf",
        "tiny-Q8_0.gguf",
    }


def test_the_published_files_load_in_llama_cpp_and_write_text(
    published: tuple[Path, Path, Ended],
) -> None:
    _, artifact, _ = published
    for path in sorted(artifact.glob("tiny-*.gguf")):
        with closing(llama_cpp.Llama(model_path=str(path), n_ctx=64, verbose=False)) as model:
            text = model("import os\n", max_tokens=8, temperature=0)["choices"][0]["text"]
        assert text.strip()


def test_the_numbers_say_that_two_bits_lose_more_than_eight(
    published: tuple[Path, Path, Ended],
) -> None:
    _, _, ended = published
    eight, two = ended.report["variants"]

    assert (eight["name"], two["name"]) == ("Q8_0", "Q2_K")
    assert two["sizeBytes"] < eight["sizeBytes"] < ended.report["original"]["sizeBytes"]
    assert float(two["meanKLDivergence"]) > 10 * float(eight["meanKLDivergence"]) > 0
    assert float(two["topTokenAgreementPercent"]) < float(eight["topTokenAgreementPercent"])
    assert eight["gatesPassed"] is True
    assert two["generations"][0]["prompt"] == "def read("


def test_the_card_is_one_that_the_hub_reads(published: tuple[Path, Path, Ended]) -> None:
    _, artifact, _ = published
    card = ModelCard.load(artifact / "README.md")

    assert card.data.library_name == "gguf"
    assert "quantized" in card.data.tags
    assert "tiny-Q2_K.gguf" in card.text
    assert_documents_are_sound(artifact)


def test_the_card_of_a_hub_model_names_its_base(published: tuple[Path, Path, Ended]) -> None:
    _, artifact, _ = published
    text = (artifact / "report.json").read_text()
    source = json.loads(text)["source"]["uri"]
    report = parse_json(RunReport, text.replace(source, "hf://owner/name"), local=True)
    head = yaml.safe_load(model_card(report).decode().split("---")[1])

    assert (head["base_model"], head["base_model_relation"]) == ("owner/name", "quantized")


def test_the_page_in_the_artifact_is_the_one_that_its_report_gives(
    published: tuple[Path, Path, Ended],
) -> None:
    _, artifact, _ = published
    page = (artifact / "report.html").read_bytes()

    again = kubequant("report", artifact, "--html")

    assert again.code == 0, again.err
    assert again.out.encode() == page
    assert b"tiny-Q2_K.gguf" in page


def test_the_command_for_llama_cpp_in_the_page_is_right_when_copied_in_the_artifacts_folder(
    published: tuple[Path, Path, Ended],
) -> None:
    _, artifact, _ = published
    commands = commands_of((artifact / "report.html").read_text())

    written = typed(commands["llama-cpp-python"], artifact)

    assert written.strip()
    assert list(commands) == ["llama.cpp", "Ollama", "llama-cpp-python"]
    for command in commands.values():
        assert re.search(r"tiny-Q\w+\.gguf", command)[0] in files_below(artifact)


def test_the_modelfile_for_ollama_names_a_file_that_llama_cpp_loads(
    published: tuple[Path, Path, Ended], tmp_path: Path
) -> None:
    # Ollama cannot run here. Its Modelfile has an instruction a line, and FROM takes a GGUF's path
    # from the Modelfile's own folder: https://docs.ollama.com/modelfile.
    _, artifact, _ = published
    first, *others = commands_of((artifact / "report.html").read_text())["Ollama"].splitlines()
    for file in artifact.glob("*.gguf"):
        (tmp_path / file.name).symlink_to(file)
    typed(first, tmp_path)
    instruction, _, path = (tmp_path / "Modelfile").read_text().removesuffix("\n").partition(" ")

    assert others == ["ollama create tiny -f Modelfile", "ollama run tiny"]
    assert instruction == "FROM"
    assert path.startswith("./")
    assert (tmp_path / path).read_bytes()[:4] == b"GGUF"


def test_the_provenance_is_a_statement_about_the_published_bytes(
    published: tuple[Path, Path, Ended],
) -> None:
    _, artifact, _ = published
    files = files_below(artifact)
    document = json.loads(files["provenance.json"])
    subjects = {s["name"]: s["digest"]["sha256"] for s in document["subject"]}
    sources = document["predicate"]["buildDefinition"]["resolvedDependencies"]

    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert subjects["tiny-Q2_K.gguf"] == hashlib.sha256(files["tiny-Q2_K.gguf"]).hexdigest()
    assert {"model/model.safetensors", "calibration text", "evaluation text"} <= {
        source["name"] for source in sources
    }


def test_running_it_again_ends_at_once_and_touches_nothing(
    published: tuple[Path, Path, Ended],
) -> None:
    path, artifact, _ = published
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in artifact.rglob("*")}

    ended = kubequant("run", path, "--json")

    assert ended.code == 0
    assert ended.report["outcome"] == "AlreadyPublished"
    assert [variant["name"] for variant in ended.report["variants"]] == ["Q8_0", "Q2_K"]
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in artifact.rglob("*")} == before


def test_the_report_can_be_shown_from_the_folder(published: tuple[Path, Path, Ended]) -> None:
    _, artifact, _ = published

    shown = kubequant("report", artifact, COLUMNS="120")
    as_json = kubequant("report", artifact / "report.json", "--json")

    assert shown.code == as_json.code == 0
    assert "Q2_K" in shown.out
    assert "mean KL" in shown.out
    assert as_json.report["variants"][1]["name"] == "Q2_K"


def test_a_folder_without_a_report_is_refused_with_a_sentence(tmp_path: Path) -> None:
    ended = kubequant("report", tmp_path)

    assert ended.code == 12
    assert "there is no report here" in ended.err


def test_a_changed_manifest_lands_beside_the_old_artifact(
    published: tuple[Path, Path, Ended],
) -> None:
    path, artifact, _ = published
    before = files_below(artifact)
    content = yaml.safe_load(path.read_text())
    content["spec"]["gguf"] = {"types": ["Q4_0"]}
    content["spec"]["gates"] = []
    path.with_name("changed.yaml").write_text(yaml.safe_dump(content))

    ended = kubequant("run", path.with_name("changed.yaml"), "--json")

    assert ended.code == 0
    assert len(list(artifact.parent.iterdir())) == 2
    assert files_below(artifact) == before


def test_a_gate_that_fails_publishes_nothing_and_says_by_how_much(tmp_path: Path) -> None:
    path = manifest(tmp_path, gates=[{"metric": "MeanKLDivergence", "max": "0.001"}])

    ended = kubequant("run", path, "--json")

    assert ended.code == 11
    assert ended.report["failure"]["reason"] == "GateFailed"
    assert "spec.gates[0]: Q2_K: MeanKLDivergence is 0.0" in ended.report["failure"]["message"]
    assert [variant["gatesPassed"] for variant in ended.report["variants"]] == [True, False]
    left = files_below(tmp_path / "out")
    folder = f"tiny/{ended.report['digest']}.failed"
    assert set(left) == {f"{folder}/report.json", f"{folder}/report.html"}
    assert b"Run failed: GateFailed" in left[f"{folder}/report.html"]


def test_a_failed_gate_is_published_and_marked_where_the_manifest_says_so(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        gguf={"types": ["Q2_K"]},
        gates=[{"metric": "MeanKLDivergence", "max": "0.001"}],
        onGateFailure="Publish",
    )

    ended = kubequant("run", path, "--json")

    assert ended.code == 0
    assert ended.report["variants"][0]["gatesPassed"] is False
    assert any("does not hold" in warning for warning in ended.report["warnings"])


def test_without_measurements_only_the_files_are_made(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        gguf={"types": ["Q4_0"]},
        evaluation={"skip": ["Perplexity", "Generations", "Performance"]},
    )

    ended = kubequant("run", path, "--json")

    assert ended.code == 0
    assert "perplexity" not in ended.report["variants"][0]
    assert ended.report["warnings"] == []


def refused(tmp_path: Path, **spec: Any) -> dict[str, Any]:
    """Run what is to be refused as a bad request, and return its failure."""
    ended = kubequant("run", manifest(tmp_path, **spec), "--json")
    assert ended.code == 10, ended.err
    assert files_below(tmp_path / "out") == {}
    failure: dict[str, Any] = ended.report["failure"]
    return failure


def test_a_text_too_short_to_measure_is_refused_with_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short to say anything.")
    dataset = {"uri": f"file://{tmp_path / 'short.txt'}"}

    failure = refused(tmp_path, evaluation={"perplexity": {"dataset": dataset}})

    assert failure["message"].startswith("spec.evaluation.perplexity: the text gives ")
    assert "at least 256 are needed" in failure["message"]


def test_a_device_that_is_not_there_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    failure = refused(tmp_path, device="GPU")

    assert failure["message"].startswith("spec.device: GPU is not used by method GGUF")


def test_relative_paths_are_taken_from_the_manifest_and_output_from_the_command(
    tmp_path: Path,
) -> None:
    (tmp_path / "model").symlink_to(TINY)
    output = {
        "uri": "s3://models/quantized",
        "s3": {"endpoint": "https://s3.example.com", "region": "us-east-1"},
        "secretRef": {"name": "s3-writer"},
    }
    path = manifest(
        tmp_path, gguf={"types": ["Q4_0"]}, model={"uri": "file://model"}, output=output
    )

    ended = kubequant("run", path, "--json", "--output", tmp_path / "elsewhere")

    assert ended.code == 0, ended.err
    assert len(list((tmp_path / "elsewhere" / "tiny").iterdir())) == 1
    assert not (tmp_path / "out").exists()


def test_a_volume_is_a_folder_on_this_machine(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        gguf={"types": ["Q4_0"]},
        model={"uri": "pvc://models/tiny-llama"},
        output={"uri": "pvc://results/here"},
    )
    (tmp_path / "results").mkdir()

    ended = kubequant(
        "run", path, "--json", "--volume", f"models={TINY.parent}", "--volume",
        f"results={tmp_path / 'results'}",
    )  # fmt: skip

    assert ended.code == 0, ended.err
    assert len(list((tmp_path / "results" / "here" / "tiny").iterdir())) == 1


def test_nothing_of_the_current_folder_is_executed(tmp_path: Path) -> None:
    # What the command, its worker, the engines' processes and the pages import.
    model = tmp_path / "downloaded"
    model.mkdir()
    modules = (
        "boto3", "gguf", "huggingface_hub", "jinja2", "json", "kubequant", "llama_cpp", "logging",
        "matplotlib", "numpy", "pydantic", "rich", "safetensors", "sitecustomize", "torch",
        "transformers", "typer", "usercustomize", "yaml",
    )  # fmt: skip
    for name in modules:
        (model / f"{name}.py").write_text("raise SystemExit('the current folder was imported')")
    evaluation = {"skip": ["Generations", "Performance"], "perplexity": {"maxTokens": 2048}}
    path = manifest(tmp_path, gguf={"types": ["Q4_0"]}, evaluation=evaluation)

    ended = kubequant("run", path, "--json", cwd=model)

    assert ended.code == 0, ended.err
