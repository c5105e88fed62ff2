"""`kubequant validate`: ours are checked by file, line and field; the rest is passed over."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.nobody import as_nobody, open_folder
from typer.testing import CliRunner

from kubequant.cli.app import app
from kubequant.cli.local import _elsewhere

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
apiVersion: kubequant.dev/v1alpha1
kind: QuantizationJob
metadata: {name: good}
spec:
  model: {uri: "hf://owner/name"}
  method: GGUF
  output: {uri: "s3://models/good"}
"""
OTHERS = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
data: {method: nonsense}
---
apiVersion: batch.volcano.sh/v1alpha1
kind: QuantizationJob
metadata: {name: of-somebody-else}
"""
CHART = """\
{{- if .Values.enabled }}
apiVersion: v1
kind: Service
{{- end }}
"""


def validate(*words: str | Path) -> tuple[int, str, str]:
    """Run the command and return (exit code, standard output, standard error)."""
    result = CliRunner().invoke(app, ["validate", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_folder_of_mixed_manifests_is_searched_and_only_ours_are_checked(tmp_path: Path) -> None:
    written(tmp_path, "apps/good.yaml", GOOD)
    written(tmp_path, "apps/others.yml", OTHERS + "---\n" + GOOD)
    written(tmp_path, "chart/templates/service.yaml", CHART)
    written(tmp_path, "notes.txt", "kind: QuantizationJob")
    written(tmp_path, "no-list.yaml", "kind: List\nitems: 5\n")
    written(tmp_path, "no-date.yaml", "since: 2026-02-30\n")

    code, out, err = validate(tmp_path)

    assert (code, err) == (0, "")
    assert out == "2 valid, 0 not, in 5 files\n"


@pytest.mark.parametrize(
    ("old", "new", "where", "said"),
    [
        pytest.param(
            "method: GGUF",
            "method: GUFF",
            ":6:",
            'not "GUFF"; did you mean GGUF?',
            id="a misspelt value is named with its line and the near one",
        ),
        pytest.param(
            'model: {uri: "hf://owner/name"}',
            'modell: {uri: "hf://owner/name"}',
            ":5:",
            "spec.modell: is not a field; did you mean model?",
            id="an unknown field is named with its line and the near one",
        ),
        pytest.param(
            '  output: {uri: "s3://models/good"}\n',
            "",
            ":5:",
            "spec.output: is required",
            id="a missing field is named at the line of what lacks it",
        ),
        pytest.param(
            '"s3://models/good"',
            '"file:///tmp/out"',
            ":7:",
            "spec.output.uri: must not be a file:// address",
            id="what only a local run can use is refused",
        ),
    ],
)
def test_a_bad_manifest_is_refused(
    tmp_path: Path, old: str, new: str, where: str, said: str
) -> None:
    assert old in GOOD
    path = written(tmp_path, "bad.yaml", GOOD.replace(old, new))

    code, out, err = validate(path)

    assert code == 10
    assert said in err
    assert f"{path}{where}" in err
    assert out == "0 valid, 1 not, in 1 files\n"


def test_file_addresses_are_valid_where_a_local_run_is_meant(tmp_path: Path) -> None:
    path = written(tmp_path, "local.yaml", GOOD.replace("s3://models/good", "file:///tmp/out"))

    assert validate("--local", path)[0] == 0


def test_the_items_of_a_list_are_checked_with_their_own_lines(tmp_path: Path) -> None:
    indented = GOOD.replace("method: GGUF", "method: NONE").replace("\n", "\n  ")
    path = written(
        tmp_path, "list.yaml", f"apiVersion: v1\nkind: List\nitems:\n- {indented.rstrip()}\n"
    )

    code, _, err = validate(path)

    assert code == 10
    assert f"{path}:9: spec.method" in err


def test_broken_yaml_that_names_our_group_is_an_error_and_other_broken_yaml_is_not(
    tmp_path: Path,
) -> None:
    ours = written(tmp_path, "ours.yaml", GOOD + "  ]broken: [\n")
    written(tmp_path, "theirs.yaml", CHART)

    code, _, err = validate(tmp_path)

    assert code == 10
    assert f"{ours}:" in err
    assert "not valid YAML" in err
    assert "theirs.yaml" not in err


def test_a_date_that_is_none_is_an_error_with_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, "ours.yaml", GOOD + "  device: 2026-02-30\n")

    code, _, err = validate(tmp_path)

    assert code == 10
    assert f"{path}:1: not valid YAML: day is out of range" in err


def test_json_may_be_indented_by_tabs(tmp_path: Path) -> None:
    content = yaml.safe_load(GOOD)
    written(tmp_path, "good.json", json.dumps(content, indent="\t"))
    bad = json.dumps({**content, "spec": {**content["spec"], "method": "NONE"}}, indent="\t")
    path = written(tmp_path, "bad.json", bad)

    code, out, err = validate(tmp_path)

    assert code == 10
    assert out == "1 valid, 1 not, in 2 files\n"
    assert f"{path}:11: spec.method" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "---\n" + GOOD + "  ]broken: [\n", "not valid YAML"),
        (GOOD, "holds no QuantizationJob named 'other'"),
    ],
    ids=["unreadable", "of another name"],
)
def test_a_run_by_name_says_why_there_is_none(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, "jobs.yaml", text)

    result = CliRunner().invoke(app, ["run", str(path), "--name", "other"])

    assert result.exit_code == 10
    assert said in " ".join(result.stderr.split())


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    code, _, err = validate(tmp_path / "nowhere")

    assert code == 2
    assert "nowhere" in err


def test_a_key_that_is_given_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "twice.yaml", OTHERS + "---\n" + GOOD + "  method: GPTQ\n")

    code, out, err = validate(path)

    assert code == 10
    assert f"{path}:17: spec.method: is given twice, first in line 15" in err
    assert out == "0 valid, 1 not, in 1 files\n"


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_what_is_nested_too_deeply_is_an_error_of_its_file_alone(
    tmp_path: Path, suffix: str
) -> None:
    deep = "[" * 3000 + "]" * 3000
    path = written(tmp_path, f"deep.{suffix}", f'{{"apiVersion": "kubequant.dev/v1", "x": {deep}}}')
    written(tmp_path, "good.yaml", GOOD)
    written(tmp_path, f"theirs.{suffix}", f'{{"x": {deep}}}')

    code, out, err = validate(tmp_path)

    assert code == 10
    assert f"{path}:1: not valid YAML: it is nested too deeply" in err
    assert "theirs" not in err
    assert out == "1 valid, 1 not, in 3 files\n"


def test_a_key_that_is_no_string_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "number.yaml", GOOD + "  7: x\n")

    code, _, err = validate(path)

    assert code == 10
    assert f"{path}:5: spec[7]: is not a field (allowed: model, " in err


def test_a_manifest_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    validate(written(tmp_path, "good.yaml", GOOD))
    with open_folder() as folder:
        path = written(folder, "closed.yaml", GOOD)
        path.chmod(0)
        with as_nobody():
            code, _, err = validate(path)
            ran = CliRunner().invoke(app, ["run", str(path)])

    assert (code, ran.exit_code) == (10, 10)
    assert f"{path}: cannot be read: Permission denied" in err
    assert f"{path}: cannot be read: Permission denied" in ran.stderr


@pytest.mark.parametrize("closed", [False, True], ids=["a file", "not to be written to"])
def test_a_working_space_that_cannot_serve_is_said(*, closed: bool) -> None:
    with open_folder() as folder:
        path = written(folder, "good.yaml", GOOD)
        work = folder / "work"
        if closed:
            work.mkdir(mode=0o555)
        else:
            work.write_text("")
        with as_nobody():
            ran = CliRunner().invoke(app, ["run", str(path), "--work-dir", str(work)])

    assert ran.exit_code == 10
    assert f"--work-dir: {work}" in ran.stderr
    assert "name a folder" in ran.stderr


@pytest.mark.parametrize("output", ["here", "file://here"])
def test_an_output_of_the_command_is_taken_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)

    assert _elsewhere({"uri": "file://there"}, output) == {"uri": f"file://{tmp_path}/here"}
