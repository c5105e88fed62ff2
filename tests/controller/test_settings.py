"""Settings by environment: read whole, or refused with a sentence for each variable."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from kubequant.controller.catalog import ImageKey
from kubequant.controller.environment import InvalidSettingsError, read_settings
from kubequant.controller.settings import DEFAULT_IMAGES, Settings

PREFIX = "KUBEQUANT_OPERATOR_"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name, value)


def test_an_empty_environment_makes_the_defaults() -> None:
    assert read_settings() == Settings()


def test_every_setting_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        NAMESPACES="team-a, team-b",
        IMAGE_REGISTRY="example.com/team/",
        IMAGES__GGUF="example.com/gguf@sha256:" + "0" * 64,
        IMAGE_PULL_POLICY="Always",
        CPU_RESOURCES='{"requests": {"cpu": "500m", "memory": "1Gi"}}',
        GPU_RESOURCES='{"limits": {"memory": "64Gi"}}',
        MEMORY_CEILING="128Gi",
        ALLOW_REMOTE_CODE="true",
        ALLOW_PICKLE="1",
        ALLOWED_SERVICE_ACCOUNTS="irsa,other",
        ALLOWED_ENV="HF_ENDPOINT, NCCL_*",
        ALLOWED_ANNOTATIONS="example.com/*,team",
        ALLOWED_LABELS="example.com/*,app",
        RUN_AS_USER="0",
        LOG_FORMAT="Text",
        CONCURRENCY="7",
    )
    read = read_settings()
    assert read.namespaces == ("team-a", "team-b")
    assert read.images[ImageKey.GGUF].startswith("example.com/gguf@sha256:")
    others = DEFAULT_IMAGES[ImageKey.LLMCOMPRESSOR]
    assert read.images[ImageKey.LLMCOMPRESSOR] == f"example.com/team/{others}"
    assert read.cpu_resources.requests["cpu"] == "500m"
    assert read.gpu_resources.limits == {"memory": "64Gi"}
    assert read.memory_ceiling == "128Gi"
    assert (read.allow_remote_code, read.allow_pickle) == (True, True)
    assert read.allowed_service_accounts == ("irsa", "other")
    assert read.allowed_env == ("HF_ENDPOINT", "NCCL_*")
    assert read.allowed_annotations == ("example.com/*", "team")
    assert read.allowed_labels == ("example.com/*", "app")
    assert (read.run_as_user, read.log_format, read.concurrency) == (0, "Text", 7)
    assert set(read.model_fields_set) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("NAMESPACES", "Team_A", f"{PREFIX}NAMESPACES[0] must be a namespace's name"),
        ("IMAGES", "{", f"{PREFIX}IMAGES"),
        ("IMAGES__GPTQ", "a/b:1", f"{PREFIX}IMAGES"),
        ("IMAGES__GGUF", "a b", "must be an image's name"),
        ("ALLOWED_ENV", "*_PATH", f"{PREFIX}ALLOWED_ENV[0] must be a variable's name"),
        ("ALLOWED_ANNOTATIONS", "*", f"{PREFIX}ALLOWED_ANNOTATIONS[0] must be an annotation's key"),
        ("ALLOWED_LABELS", "a b", f"{PREFIX}ALLOWED_LABELS[0] must be a label's key"),
        ("ALLOWED_ENV", "*", f"{PREFIX}ALLOWED_ENV[0] must be a variable's name"),
        ("CPU_RESOURCES", '{"requests": {"cpu": "lots"}}', "must be a Kubernetes quantity"),
        ("CPU_RESOURCES", '{"request": {}}', "is not a field; did you mean requests?"),
        ("ALLOW_PICKLE", "perhaps", f"{PREFIX}ALLOW_PICKLE must be true or false"),
        ("LOG_FORMAT", "json", f"{PREFIX}LOG_FORMAT must be one of JSON, Text"),
        ("CONCURRENCY", "0", f"{PREFIX}CONCURRENCY must be at least 1"),
        ("CONCURRENCY", "many", f"{PREFIX}CONCURRENCY must be a whole number"),
        ("RUN_AS_USER", "-1", f"{PREFIX}RUN_AS_USER must be at least 0"),
        (
            "CONCURENCY",
            "3",
            f"{PREFIX}CONCURENCY is not a setting; did you mean {PREFIX}CONCURRENCY",
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    given(monkeypatch, **{name: value})
    with pytest.raises(InvalidSettingsError) as refused:
        read_settings()
    assert sentence in str(refused.value)


@pytest.mark.parametrize("value", ["", " ", ","])
def test_a_list_that_is_set_and_empty_allows_nothing(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    given(monkeypatch, ALLOWED_ANNOTATIONS=value, ALLOWED_LABELS=value, ALLOWED_ENV=value)
    read = read_settings()
    assert (read.allowed_annotations, read.allowed_labels, read.allowed_env) == ((), (), ())


def test_what_is_no_list_and_empty_keeps_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, MEMORY_CEILING="", CONCURRENCY="", IMAGES="")
    assert read_settings() == Settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().concurrency = 3  # type: ignore[misc]
