"""What an engine is asked to be, what it was built as, and how TensorRT-LLM's program is run."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.worker.methods.conftest import Counter
from tests.worker.methods.stand_ins import python_with

from kubequant.api.contract import EngineDetail
from kubequant.api.outcome import FailureReason
from kubequant.api.tensorrt import TensorRTParameters
from kubequant_worker.errors import BadRequestError, MemoryExhaustedError
from kubequant_worker.file_digest import FileDigest
from kubequant_worker.manifest import Manifest
from kubequant_worker.methods.child import ChildFailedError
from kubequant_worker.methods.gpu import GPU
from kubequant_worker.methods.tensorrt_engine import (
    build_words,
    engine_detail,
    is_product,
    judge_answers,
    product_label,
    require_gpu_for,
)
from kubequant_worker.methods.tensorrt_llm import (
    PYTHON,
    TensorRTLLM,
    interpreter,
    require_tensorrt_llm,
)

if TYPE_CHECKING:
    from pathlib import Path

H100 = GPU("NVIDIA H100 80GB HBM3", 80 << 30, (9, 0))
L4 = GPU("NVIDIA L4", 24 << 30, (8, 9))
A100 = GPU("NVIDIA A100-SXM4-80GB", 80 << 30, (8, 0))
MACHINE = {
    "gpus": [{"name": H100.name, "compute_capability": "9.0", "memory_bytes": H100.memory_bytes}],
    "driver": "580.1",
    "cuda": "13.0",
    "tensorrt": "10.14.1",
    "tensorrt_llm": "1.2.1",
}


def asked(**fields: Any) -> TensorRTParameters:
    return TensorRTParameters.model_validate(fields).effective(on_cpu=False)


def config(**limits: int) -> dict[str, Any]:
    """Return an engine's config.json, as much of it as is read."""
    built = {"max_batch_size": 8, "max_input_len": 2048, "max_seq_len": 2560, **limits}
    parallel = built.pop("tp_size", 1)
    return {"build_config": built, "pretrained_config": {"mapping": {"tp_size": parallel}}}


@pytest.mark.parametrize(
    ("name", "wanted", "same"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3", True),
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3-SHARED", True),
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", True),
        ("NVIDIA L4", "NVIDIA-L40", False),
        ("NVIDIA L4", "NVIDIA-L40-SHARED", False),
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-PCIe", False),
    ],
)
def test_a_gpu_is_known_by_the_label_of_its_node(name: str, wanted: str, *, same: bool) -> None:
    assert is_product(name, wanted) is same
    assert is_product(name, product_label(name))


@pytest.mark.parametrize(
    ("fields", "there", "said", "way_out"),
    [
        pytest.param({}, [], "1 GPUs are needed, and there are 0 here", "build: ", id="none"),
        pytest.param(
            {"tensor_parallel": 2}, [H100], "2 GPUs are needed, and there is 1 here",
            "spec.pod.gpu.count", id="too few",
        ),
        pytest.param(
            {"gpu_product": "NVIDIA-H100-80GB-HBM3"}, [L4],
            "built for NVIDIA-H100-80GB-HBM3, and here is NVIDIA L4", "NVIDIA-L4", id="another",
        ),
        pytest.param(
            {}, [A100], "FP8 needs compute capability 8.9 or more", "INT8", id="too old for FP8",
        ),
    ],
)  # fmt: skip
def test_an_engine_for_other_gpus_than_those_here_is_refused(
    fields: dict[str, Any], there: list[GPU], said: str, way_out: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        require_gpu_for(asked(**fields), there)

    assert said in refused.value.message
    assert way_out in refused.value.advice
    assert refused.value.reason is FailureReason.DEVICE_NOT_FOUND


def test_the_gpu_that_is_asked_for_is_taken() -> None:
    require_gpu_for(asked(gpu_product="NVIDIA-H100-80GB-HBM3", tensor_parallel=2), [H100, H100])
    require_gpu_for(asked(), [L4])
    require_gpu_for(asked(precision="INT8"), [A100])


def test_every_limit_reaches_the_builder() -> None:
    words = build_words(asked(max_batch_size=3, max_input_length=9000, max_output_length=50))

    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--max_batch_size": "3",
        "--max_input_len": "9000",
        "--max_seq_len": "9050",
        "--max_num_tokens": "9000",
    }


def test_an_engine_is_told_by_its_own_config_and_the_machine() -> None:
    found = engine_detail(asked(precision="INT8"), config(max_batch_size=16), MACHINE)

    assert found == EngineDetail(
        gpu="NVIDIA H100 80GB HBM3",
        gpu_product="NVIDIA-H100-80GB-HBM3",
        compute_capability="9.0",
        gpu_memory_bytes=80 << 30,
        driver="580.1",
        cuda="13.0",
        tensorrt="10.14.1",
        tensorrt_llm="1.2.1",
        precision="INT8",
        max_batch_size=16,
        max_input_length=2048,
        max_output_length=512,
        tensor_parallel=1,
    )


@pytest.mark.parametrize(
    ("built", "said"),
    [
        ({"max_seq_len": 2304}, "maxOutputLength 256 and not 512"),
        ({"max_batch_size": 4}, "maxBatchSize 4 and not 8"),
        ({"max_input_len": 1024, "max_seq_len": 1536}, "maxInputLength 1024 and not 2048"),
    ],
)
def test_an_engine_of_less_than_was_asked_is_no_success(built: dict[str, int], said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        engine_detail(asked(), config(**built), MACHINE)


def test_a_manifest_says_what_an_engine_was_built_for_and_else_nothing() -> None:
    files = [FileDigest("engine/rank0.engine", 3, "0" * 64)]
    built = engine_detail(asked(), config(), MACHINE)
    told = json.loads(Manifest.of("a", "0123abcd", files, engine=built).to_bytes())["engine"]

    assert told["computeCapability"] == "9.0"
    assert told["maxBatchSize"] == 8
    assert told["tensorrtLLM"] == "1.2.1"
    assert b'engine":' not in Manifest.of("a", "0123abcd", files).to_bytes()
    assert Manifest.from_bytes(Manifest.of("a", "0123abcd", files, engine=built).to_bytes()).engine


def test_an_engine_that_answers_as_the_model_passes_and_another_does_not() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (40, 300)).astype(np.float32)
    right = rows.argmax(axis=1).tolist()
    nearly = [*right[:32], *[token + 1 for token in right[32:]]]

    assert judge_answers(rows, right[:20]).endswith("100 %")
    assert "80 %" in judge_answers(rows, nearly)
    with pytest.raises(BadRequestError, match="not the quantized model's likeness") as refused:
        judge_answers(rows, np.roll(right, 1).tolist())
    assert refused.value.reason is FailureReason.VERIFICATION_FAILED


# ---- the program, without TensorRT-LLM: the way there and back ----


def test_without_the_library_an_engine_is_refused_with_the_way_out() -> None:
    assert interpreter() == ""
    with pytest.raises(BadRequestError, match="TensorRT-LLM, which is not in this worker") as no:
        require_tensorrt_llm()
    assert "build: Checkpoint" in no.value.advice


@pytest.mark.parametrize("python", ["/usr/bin/python3", "/nowhere/python"])
def test_a_python_without_the_library_is_none(python: str, monkeypatch: Any) -> None:
    monkeypatch.setenv(PYTHON, python)

    assert interpreter() == ""


def test_a_broken_installation_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with (
        TensorRTLLM(tmp_path, sys.executable) as library,
        pytest.raises(ChildFailedError, match="No module named 'tensorrt_llm'"),
    ):
        library.build(asked(), tmp_path / "ranks", tmp_path / "engine", Counter())


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python with packages that take the library's place, as far as we call it.

    They build nothing and know no GPU: what is seen is that words, steps and answers arrive.
    """
    texts = {
        "tensorrt/__init__.py": "__version__ = '10.14.1'",
        "pynvml.py": """
            class NVMLError(Exception): pass
            def nvmlInit(): raise NVMLError
        """,
        "torch.py": """
            class cuda:
                device_count = staticmethod(lambda: 1)
                get_device_name = staticmethod(lambda n: "NVIDIA L4")
                get_device_capability = staticmethod(lambda n: (8, 9))
                class _Properties: total_memory = 24
                get_device_properties = staticmethod(lambda n: cuda._Properties)
            class version: cuda = "13.0"
        """,
        "tensorrt_llm/__init__.py": """
            __version__ = "1.2.1"
            class SamplingParams:
                def __init__(self, **words): assert words["max_tokens"] == 1
        """,
        "tensorrt_llm/commands/__init__.py": "",
        "tensorrt_llm/commands/build.py": """
            import json, os, sys
            def build_and_save(rank): return True
            def main():
                words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
                if words["--max_batch_size"] == "4000": raise ValueError("no room for 4000")
                if words["--max_batch_size"] == "3999": os.kill(os.getpid(), 9)
                print("noise that nobody reads")
                for rank in range(2): build_and_save(rank)
                target = words["--output_dir"]; os.makedirs(target)
                named = {name: int(words["--" + name]) for name in
                         ("max_batch_size", "max_input_len", "max_seq_len")}
                with open(target + "/config.json", "w") as file:
                    json.dump({"build_config": named,
                               "pretrained_config": {"mapping": {"tp_size": 2}}}, file)
        """,
        "tensorrt_llm/_tensorrt_engine/__init__.py": """
            class _Answer:
                def __init__(self, ids): self.outputs = [self]; self.token_ids = [ids[-1] + 1]
            class LLM:
                def __init__(self, model, skip_tokenizer_init, tensor_parallel_size):
                    assert tensor_parallel_size == 2
                def generate(self, asked, greedy, use_tqdm):
                    return [_Answer(one["prompt_token_ids"]) for one in asked]
                def shutdown(self): pass
        """,
    }
    return python_with(tmp_path_factory.mktemp("stand-in"), texts)


def test_words_go_there_and_steps_and_results_come_back(stand_in: Path, tmp_path: Path) -> None:
    meter, engine = Counter(), tmp_path / "engine"
    with TensorRTLLM(tmp_path, str(stand_in)) as library:
        two = asked(tensor_parallel=2, max_input_length=100, max_output_length=28)
        found = library.build(two, tmp_path / "ranks", engine, meter)
        answers = library.answers(engine, np.arange(100, 110, dtype=np.int32))

    assert (found.gpu, found.compute_capability, found.driver) == ("NVIDIA L4", "8.9", "")
    assert (found.max_input_length, found.max_output_length, found.tensor_parallel) == (100, 28, 2)
    assert (meter.total, meter.done) == (2, 2)
    assert "engine: part 2 of 2" in meter.messages
    assert answers == list(range(101, 111))


def test_what_the_library_does_not_do_is_a_sentence(stand_in: Path, tmp_path: Path) -> None:
    with (
        TensorRTLLM(tmp_path, str(stand_in)) as library,
        pytest.raises(BadRequestError, match="TensorRT-LLM does not do this: no room for 4000"),
    ):
        library.build(asked(max_batch_size=4000), tmp_path, tmp_path / "engine", Counter())


def test_a_kill_by_the_kernel_is_told_as_one(stand_in: Path, tmp_path: Path) -> None:
    with (
        TensorRTLLM(tmp_path, str(stand_in)) as library,
        pytest.raises(MemoryExhaustedError, match="killed by the kernel"),
    ):
        library.build(asked(max_batch_size=3999), tmp_path, tmp_path / "engine", Counter())


def test_its_python_is_found_and_gets_its_own_paths(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PYTHON, str(stand_in))
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made up")
    monkeypatch.setenv("TENSORRT_LLM_LIBRARY_PATH", "/theirs")
    from kubequant_worker.methods import tensorrt_llm  # noqa: PLC0415 - what is patched is its own

    found = tensorrt_llm._environment()

    assert interpreter() == str(stand_in)
    assert found["LD_LIBRARY_PATH"] == "/theirs"
    assert "PYTHONPATH" not in found
    assert "AWS_SECRET_ACCESS_KEY" not in found
    assert "CUDA_VISIBLE_DEVICES" not in found or os.environ.get("CUDA_VISIBLE_DEVICES")
