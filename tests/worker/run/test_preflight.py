"""What is refused before any gigabyte moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.api.cases import SMALLEST

from kubequant.api.outcome import FailureReason
from kubequant.api.resource import read_manifest
from kubequant.api.spec import Memory
from kubequant_worker.errors import BadRequestError, MemoryExhaustedError, UnavailableError
from kubequant_worker.methods import Needs
from kubequant_worker.preflight import (
    check_room,
    refuse_what_is_missing,
    require_gpu_memory,
    require_secrets,
    size,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kubequant.api.spec import QuantizationJobSpec

PETABYTE = 2**50


def spec(**fields: Any) -> QuantizationJobSpec:
    return read_manifest({**SMALLEST, "spec": {**SMALLEST["spec"], **fields}}).spec


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"device": "GPU"}, "spec.device: GPU", id="a GPU for llama.cpp on CPUs"),
    ],
)
def test_what_would_be_asked_in_vain_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        refuse_what_is_missing(spec(method="GGUF", **fields))

    assert refusal.value.message.startswith(said)


def test_a_secret_that_is_not_there_is_named_with_its_field(tmp_path: Path) -> None:
    asked = spec(
        model={"uri": "hf://example/model", "secretRef": {"name": "hf-token"}},
        output={"uri": "s3://bucket/out", "secretRef": {"name": "s3-writer"}},
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "HF_TOKEN").write_text("hf_made_up")
    (tmp_path / "output").mkdir()

    with pytest.raises(UnavailableError) as refusal:
        require_secrets(asked, tmp_path)

    assert refusal.value.reason is FailureReason.ACCESS_DENIED
    assert refusal.value.message.startswith("spec.output.secretRef: there is no Secret s3-writer")


def test_without_a_pods_folders_the_usual_chains_of_credentials_serve(tmp_path: Path) -> None:
    require_secrets(spec(output={"uri": "s3://bucket/out", "secretRef": {"name": "w"}}), tmp_path)


def test_too_little_disk_is_refused_with_both_numbers_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError) as refusal:
        check_room(Needs(PETABYTE, 0, 0), Memory(), tmp_path, 2**33)

    assert refusal.value.reason is FailureReason.DISK_FULL
    assert "needs 1024.0 TiB of working space" in refusal.value.message
    assert "--work-dir" in refusal.value.advice


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemoryExhaustedError, match=r"needs at least 1024\.0 TiB"):
        check_room(Needs(0, PETABYTE, PETABYTE), Memory(), tmp_path, 2**33)


def test_memory_that_only_just_does_is_a_warning(tmp_path: Path) -> None:
    (warning,) = check_room(Needs(0, 0, PETABYTE), Memory(), tmp_path, 2**33)

    assert "read from disk again and again" in warning
    assert check_room(Needs(0, 0, 0), Memory(), tmp_path, 2**33) == []


@pytest.mark.parametrize(
    ("needed", "most", "said"),
    [
        pytest.param(
            81 * 2**30,
            None,
            "The run needs at least 81.0 GiB of GPU memory, and the GPU has 80.0 GiB",
            id="more than the GPU has",
        ),
        pytest.param(
            17 * 2**30,
            "16Gi",
            "spec.memory.maxGPUMemory: the run needs at least 17.0 GiB of GPU memory and may use "
            "16.0 GiB",
            id="more than the spec allows, which would be spilled unasked",
        ),
    ],
)
def test_too_little_gpu_memory_is_refused(needed: int, most: str | None, said: str) -> None:
    needs = Needs(0, 0, 0, needed, gpu_memory_advice="spec.device: CPU needs no GPU.")

    with pytest.raises(MemoryExhaustedError) as refusal:
        require_gpu_memory(needs, Memory(max_gpu_memory=most), 80 * 2**30)

    assert refusal.value.message == said
    assert refusal.value.advice.endswith(". spec.device: CPU needs no GPU.")


def test_gpu_memory_that_does_is_taken() -> None:
    require_gpu_memory(Needs(0, 0, 0, 2**34), Memory(max_gpu_memory="16Gi"), 2**34)


@pytest.mark.parametrize(
    ("amount", "said"), [(999, "999 bytes"), (2048, "2.0 KiB"), (5 * 2**30, "5.0 GiB")]
)
def test_bytes_are_said_as_people_do(amount: int, said: str) -> None:
    assert size(amount) == said


def test_an_engine_bound_to_gpus_is_refused_without_one_and_not_sent_to_the_cpu() -> None:
    with pytest.raises(BadRequestError) as refusal:
        refuse_what_is_missing(spec(method="GPTQ", gptq={"engine": "AutoGPTQ"}))

    assert refusal.value.reason is FailureReason.DEVICE_NOT_FOUND
    assert "there is none here; name another engine than AutoGPTQ" in refusal.value.message
    assert "CPU" not in refusal.value.message
