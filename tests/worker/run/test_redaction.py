"""Secrets that libraries find by themselves are kept out of what a run says and publishes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.worker.run.manifests import SECRET, TINY, files_below, kubequant, manifest

from kubequant_worker.redaction import Redactor

if TYPE_CHECKING:
    from pathlib import Path

PROFILE = f"""
[default]
aws_access_key_id = AKIAIOSFODNN7EXAMPLE
aws_secret_access_key={SECRET}
"""
# Where a library looks -> what stands there, and the variable that names another place.
FILES = {
    ".aws/credentials": (PROFILE, "AWS_SHARED_CREDENTIALS_FILE"),
    ".aws/config": (f"[profile x]\n  aws_session_token = {SECRET}\n", "AWS_CONFIG_FILE"),
    ".aws/sso/cache/0a.json": (json.dumps({"accessToken": SECRET}), ""),
    ".aws/cli/cache/0b.json": (json.dumps({"Credentials": {"SecretAccessKey": SECRET}}), ""),
    ".cache/huggingface/token": (SECRET, "HF_TOKEN_PATH"),
    ".cache/huggingface/stored_tokens": (f"[laptop]\nhf_token = {SECRET}\n", ""),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_library_finds_in_the_users_home_is_known(tmp_path: Path, name: str) -> None:
    content, _ = FILES[name]
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(content)

    redactor = Redactor.of_run(tmp_path / "none", {"HOME": str(tmp_path)})

    assert redactor.clean(f"key {SECRET} of AKIAIOSFODNN7EXAMPLE") == (
        "key [redacted] of AKIAIOSFODNN7EXAMPLE"
    )


@pytest.mark.parametrize("name", [name for name, (_, variable) in FILES.items() if variable])
def test_a_file_that_a_variable_names_is_known(tmp_path: Path, name: str) -> None:
    content, variable = FILES[name]
    (tmp_path / "elsewhere").write_text(content)

    redactor = Redactor.of_run(tmp_path / "none", {variable: str(tmp_path / "elsewhere")})

    assert redactor.clean(SECRET) == "[redacted]"


def test_a_secret_of_a_profile_is_in_no_published_document(tmp_path: Path) -> None:
    # The secret is the name of the model's folder, which every document names.
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(PROFILE)
    (tmp_path / SECRET).symlink_to(TINY)
    path = manifest(
        tmp_path,
        gguf={"types": ["Q4_0"]},
        model={"uri": f"file://{tmp_path / SECRET}"},
        evaluation={"skip": ["Perplexity", "Generations", "Performance"]},
    )

    ended = kubequant("run", path, "--json", HOME=str(tmp_path))

    assert ended.code == 0, ended.err
    published = files_below(tmp_path / "out")
    assert len(published) == 6
    assert [name for name, content in published.items() if SECRET.encode() in content] == []
    assert SECRET not in ended.out + ended.err
    assert "[redacted]" in ended.out
