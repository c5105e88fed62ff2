"""README.md: a model card whose metadata huggingface_hub reads, and words that stay words."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from tests.api.reports import REPORT
from tests.page.hostile import hostile_report
from tests.page.reports import ENGINES_OF_METHODS, METHODS, whole_report

from kubequant.api.contract import RunReport
from kubequant.api.engines import ENGINES, ONNX_RUNTIME
from kubequant.api.enums import Method
from kubequant.api.outcome import ExitCode, Outcome
from kubequant_worker.card import model_card

BARE = RunReport(digest="9f2c41aa", outcome=Outcome.PUBLISHED, exit_code=ExitCode.PUBLISHED)


def head(report: RunReport) -> dict[str, Any]:
    """Return the metadata as huggingface_hub reads it, which must be all that was written."""
    content = model_card(report).decode()
    card = ModelCard(content)
    written = yaml.safe_load(content.split("---\n")[1])
    assert card.data.to_dict() == written
    return dict(written)


@pytest.mark.parametrize("method", METHODS)
def test_the_hub_reads_the_card_of_every_method(method: Method) -> None:
    data = head(whole_report(method))

    assert data["base_model"] == "meta-llama/Llama-3.1-8B-Instruct"
    made = {Method.PRUNE: "finetune", Method.DISTILL: "finetune"}
    assert data["base_model_relation"] == made.get(method, "quantized")
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "llama3.1"
    assert data["language"] == ["en", "de"]
    assert data["library_name"] == {Method.GGUF: "gguf", Method.TENSOR_RT: "tensorrt"}.get(
        method, "transformers"
    )
    assert data["tags"][0] == method.value.lower()
    assert data["tags"][-1] == "kubequant"


@pytest.mark.parametrize(("method", "engine"), ENGINES_OF_METHODS)
def test_the_hub_reads_the_card_of_what_every_engine_makes(method: Method, engine: str) -> None:
    (row,) = (one for one in ENGINES[method] if one.name == engine)
    data = head(whole_report(method, engine))

    assert row.writes.lower() in data["tags"]
    assert (data["library_name"] == "onnx") == (engine == ONNX_RUNTIME)
    assert ("quantized" in data["tags"]) == (data["base_model_relation"] == "quantized")


def test_the_results_are_a_model_index_that_the_hub_reads_back() -> None:
    data = head(whole_report())
    name, results = model_index_to_eval_results(data["model-index"])
    read = {(one.metric_name, one.dataset_name): one.metric_value for one in results}

    assert name == "llama-3-1-8b"
    assert len(results) == 8
    assert read["Perplexity (Q4_K_M)", "text that comes with kubequant"] == 6.31
    assert read["acc_norm (Q4_K_M)", "hellaswag"] == 0.7868


@pytest.mark.parametrize(
    ("method", "engine", "tags"),
    [
        (Method.GPTQ, "llmcompressor 0.14.0.1", {"gptq", "4-bit", "compressed-tensors"}),
        (Method.FP8, "llmcompressor 0.14.0.1", {"fp8", "8-bit", "compressed-tensors"}),
        (Method.GGUF, "llama.cpp (llama-cpp-python 0.3.36)", {"gguf"}),
        (Method.BITS_AND_BYTES, "bitsandbytes 0.50", {"bitsandbytes", "8-bit"}),
    ],
)
def test_tags_name_method_bits_and_format(method: Method, engine: str, tags: set[str]) -> None:
    report = whole_report(method, resolved={"method": method.value, "engine": engine})

    assert tags | {"quantized", "kubequant"} == set(head(report)["tags"])


def test_a_licence_of_its_own_goes_with_its_name_and_link() -> None:
    card = {"license": "other", "licenseName": "llama3", "licenseLink": "https://example.com/l"}
    data = head(whole_report(source={"uri": "hf://owner/name", "card": card}))

    assert (data["license"], data["license_name"], data["license_link"]) == tuple(card.values())


def test_a_model_that_is_not_the_hubs_has_no_base_and_no_licence_that_nobody_gave() -> None:
    data = head(whole_report(source={"uri": "s3://models/llama"}))

    assert {"base_model", "base_model_relation", "license", "language"} & set(data) == set()


def test_the_dataset_that_calibrated_is_named() -> None:
    used = {"role": "calibration", "uri": "hf://owner/text/data/train.jsonl", "tokens": 5}

    assert head(whole_report(datasets=[used]))["datasets"] == ["owner/text"]


@pytest.mark.parametrize("report", [BARE, REPORT, hostile_report()], ids=["bare", "old", "hostile"])
def test_any_report_gives_a_card(report: RunReport) -> None:
    assert "kubequant" in head(report)["tags"]


def test_hostile_texts_stay_text() -> None:
    body = model_card(hostile_report()).decode().split("---\n", 2)[2]
    # Code, in a block or in a line, is shown as it is.
    words = re.sub("`[^`\n]*`", "", "".join(body.split("```")[::2]))

    assert "img src=x" in words
    assert re.findall("<[a-z/!]", words) == []
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert rows
    assert not any(row.replace("\\|", "").count("|") > 9 for row in rows)


def test_the_numbers_stand_in_the_card_and_so_do_the_commands() -> None:
    text = model_card(whole_report()).decode()

    for words in (
        "Q4_K_M is recommended",
        "| Q4_K_M | 6.31 ± 0.03 | +1.12 ± 0.06 % | 0.0214 ± 0.0003 | 94.9 ± 0.3 % |",
        "[report.html](report.html)",
        "llama-server -m llama-3-1-8b-Q4_K_M.gguf",
        "ollama run llama-3-1-8b",
    ):
        assert words in text


def test_the_zeros_of_a_pruned_model_are_told_by_kind_of_module() -> None:
    lines = model_card(whole_report(Method.PRUNE)).decode().splitlines()

    assert "| model.layers.\\*.mlp.up_proj | 2 | 50.00 % | 50.05 % | 50.00 % | 50.10 % |" in lines
    assert "| all | 4 | 50.00 % | 50.01 % | 50.00 % | 50.10 % |" in lines


def test_an_engine_is_told_with_the_one_gpu_and_the_limits_that_it_serves() -> None:
    text = model_card(whole_report(Method.TENSOR_RT)).decode()

    assert (
        "- The engine serves only where it was built: NVIDIA L4, compute capability 8.9, driver "
        "580.1; TensorRT-LLM 1.2.1, TensorRT 10.14.1, CUDA 13.0; at most 8 requests of 2,048 "
        "tokens in and 512 out, over 1 GPU"
    ) in text


def test_the_steps_that_made_the_source_are_told() -> None:
    step = {"method": "Prune", "setting": "50 % zeros", "run": "b916b3ae", "uri": "hf://o/first"}
    card = model_card(whole_report(source={"uri": "s3://b/pruned", "steps": [step]})).decode()

    assert (
        "- Before, by its own provenance: Prune (50 % zeros) of hf://o/first, run b916b3ae" in card
    )


def test_a_student_s_card_says_by_how_much_it_learned_and_names_both_models() -> None:
    student = {"uri": "hf://owner/small", "revision": "0e9e39f2"}
    card = model_card(whole_report(Method.DISTILL, student=student)).decode()
    head = yaml.safe_load(card.split("---")[1])

    assert "- Distill: 2,000 steps, 32,768,000 tokens; loss 21.00 → 1.10; perplexity" in card
    assert "- Student before it learned: `hf://owner/small` at commit `0e9e39f2`" in card
    assert head["base_model"] == ["meta-llama/Llama-3.1-8B-Instruct", "owner/small"]
