"""What is taken of a model's folder, and what a folder that should not be opened gets."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.nobody import as_nobody, open_folder
from tests.worker.hostile import (
    NAMES,
    SAFETENSORS,
    good_model,
    good_weights,
    sharded_model,
    write,
)

from kubequant.api.data import ModelSource
from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import AccessError, BadRequestError
from kubequant_worker.sources import fetch_model, inspect_model
from kubequant_worker.sources.leftovers import bytes_there
from kubequant_worker.sources.selection import model_files
from kubequant_worker.sources.source import RemoteFile

if TYPE_CHECKING:
    from kubequant_worker.sources import FetchedModel


def local(folder: Path, **options: Any) -> ModelSource:
    return ModelSource.model_validate(
        {"uri": f"file://{folder}", **options}, context={"local": True}
    )


def fetch(tmp_path: Path, files: dict[str, bytes], **options: Any) -> FetchedModel:
    write(tmp_path / "model", files)
    return fetch_model(
        local(tmp_path / "model", **options),
        into=tmp_path / "into",
        credentials=tmp_path / "none",
        volumes=tmp_path,
    )


def without(name: str) -> dict[str, bytes]:
    return {key: value for key, value in good_model().items() if key != name}


REFUSED: dict[str, tuple[dict[str, bytes], str, FailureReason]] = {
    "a pickle only": (
        {**without("model.safetensors"), "pytorch_model.bin": b"\x80\x04"},
        "only as pickle",
        FailureReason.UNSAFE_MODEL,
    ),
    "no weights at all": (
        without("model.safetensors"),
        "no weights",
        FailureReason.UNSUPPORTED_MODEL,
    ),
    "no configuration": (without("config.json"), "no config.json", FailureReason.UNSUPPORTED_MODEL),
    "no tokenizer": (without("tokenizer.json"), "no tokenizer", FailureReason.UNSUPPORTED_MODEL),
    "a configuration that asks for remote code": (
        {**good_model(), "config.json": b'{"auto_map": {"AutoModel": "evil.Model"}}'},
        "asks to run Python code",
        FailureReason.UNSAFE_MODEL,
    ),
    "a tokenizer that asks for remote code": (
        {**good_model(), "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": "x"}}'},
        "tokenizer_config.json",
        FailureReason.UNSAFE_MODEL,
    ),
    "a configuration that is not JSON": (
        {**good_model(), "config.json": b"{"},
        "config.json is not JSON",
        FailureReason.UNSUPPORTED_MODEL,
    ),
    "a configuration with a number of 5,000 digits": (
        {**good_model(), "config.json": b'{"hidden_size": ' + b"9" * 5000 + b"}"},
        "config.json is not JSON",
        FailureReason.UNSUPPORTED_MODEL,
    ),
    "an index with a number of 5,000 digits": (
        {**sharded_model(), "model.safetensors.index.json": b'{"size": ' + b"9" * 5000 + b"}"},
        r"index\.json is not JSON",
        FailureReason.UNSUPPORTED_MODEL,
    ),
    "an index that names a shard that is not there": (
        {k: v for k, v in sharded_model().items() if "00002-of" not in k},
        "names the shard 'model-00002-of-00002.safetensors'",
        FailureReason.UNSUPPORTED_MODEL,
    ),
    "an index that names a file elsewhere": (
        {
            **sharded_model(),
            "model.safetensors.index.json": b'{"weight_map": {"a": "../../etc/passwd"}}',
        },
        "names the shard '../../etc/passwd'",
        FailureReason.UNSUPPORTED_MODEL,
    ),
    "an index that names a tensor that is not there": (
        {
            **sharded_model(),
            "model.safetensors.index.json": json.dumps(
                {"weight_map": {"c": "model-00001-of-00002.safetensors"}}
            ).encode(),
        },
        "and it is not",
        FailureReason.UNSAFE_MODEL,
    ),
    "a tensor in two files": (
        {**good_model(), "model-extra.safetensors": good_weights()},
        "is in model-extra.safetensors and in model.safetensors",
        FailureReason.UNSAFE_MODEL,
    ),
    **{
        f"weights with {case}": (
            {**good_model(), "model.safetensors": content},
            "is no safetensors file to be opened",
            FailureReason.UNSAFE_MODEL,
        )
        for case, (content, _) in SAFETENSORS.items()
        if case in {"a header longer than the file", "tensors that overlap"}
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_should_not_be_opened_is_refused_with_a_sentence(
    tmp_path: Path, case: str
) -> None:
    files, words, reason = REFUSED[case]
    with pytest.raises(BadRequestError, match=words) as error:
        fetch(tmp_path, files)
    assert error.value.reason is reason
    assert error.value.message.startswith("spec.model.uri")


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_leads_out_of_the_folder_is_refused(case: str) -> None:
    listed = [RemoteFile(name, 10) for name in (*good_model(), NAMES[case])]
    with pytest.raises(BadRequestError, match="leads out of its folder"):
        model_files(listed, ModelSource(uri="hf://owner/name"))


def test_a_name_that_is_no_utf_8_is_refused_before_a_report_has_to_hold_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", good_model())
    Path(os.fsdecode(os.fsencode(folder) + b"/x\xff.json")).write_bytes(b"{}")

    with pytest.raises(BadRequestError, match="is no UTF-8") as error:
        fetch(tmp_path, {})

    assert error.value.message.encode().startswith(b"The file name 'x\\udcff.json'")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(good_weights())
    folder = write(tmp_path / "model", without("model.safetensors"))
    (folder / "model.safetensors").symlink_to("../secret.safetensors")
    with pytest.raises(BadRequestError, match="is a link that leads out") as error:
        fetch(tmp_path, {})
    assert error.value.reason is FailureReason.UNSAFE_MODEL


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model", good_model())
    (tmp_path / "model" / "again.json").symlink_to("again.json")
    with pytest.raises(BadRequestError, match=r"again\.json.*leads to itself") as error:
        inspect_model(local(tmp_path / "model"), credentials=tmp_path, volumes=tmp_path)
    assert error.value.reason is FailureReason.UNSAFE_MODEL


@pytest.mark.parametrize(
    "closed",
    [
        pytest.param("outer", id="a folder above the model"),
        pytest.param("outer/model", id="the model's own folder"),
        pytest.param("outer/model/model.safetensors", id="the weights"),
    ],
)
def test_what_may_not_be_read_is_named(tmp_path: Path, closed: str) -> None:
    # Once as root, so that all that is imported late is there.
    fetch(tmp_path, good_model())
    with open_folder() as folder:
        write(folder / "outer" / "model", good_model())
        (folder / "outer" / "model" / "lost+found").mkdir(mode=0)
        into = folder / "into"
        into.mkdir()
        into.chmod(0o777)
        (folder / closed).chmod(0)
        with as_nobody(), pytest.raises(AccessError, match="may not be read") as error:
            fetch_model(
                local(folder / "outer" / "model"), into=into, credentials=folder, volumes=folder
            )
        (folder / closed).chmod(0o700)
    assert error.value.reason is FailureReason.ACCESS_DENIED
    assert error.value.message.startswith("spec.model.uri: ")


def test_a_folder_below_that_may_not_be_read_is_passed_over(tmp_path: Path) -> None:
    fetch(tmp_path, good_model())
    with open_folder() as folder:
        write(folder / "model", good_model())
        (folder / "model" / "lost+found").mkdir(mode=0)
        with as_nobody():
            listing = inspect_model(local(folder / "model"), credentials=folder, volumes=folder)
    assert listing.weight_bytes == len(good_weights())


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", without("model.safetensors"))
    write(folder, {".data/weights": good_weights()})
    (folder / "model.safetensors").symlink_to(".data/weights")
    assert fetch(tmp_path, {}).size_bytes == len(good_weights())


def test_a_snapshot_of_the_hub_s_cache_is_read_through_its_links(tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for name, content in good_model().items():
        blob = hashlib.sha256(content).hexdigest()
        write(cache / "blobs", {blob: content})
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    fetched = fetch_model(
        local(snapshot), into=tmp_path / "into", credentials=tmp_path / "none", volumes=tmp_path
    )
    assert len(fetched.files) == len(good_model())


def test_only_what_was_chosen_is_in_the_folder_that_the_engine_sees(tmp_path: Path) -> None:
    extra = {
        "modeling_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80",
        "consolidated.safetensors": good_weights(),
        "original/model.safetensors": good_weights(),
        ".git/config": b"",
        "README.md": b"# model",
    }
    fetched = fetch(tmp_path, {**good_model(), **extra})
    assert {path.name for path in fetched.folder.iterdir()} == set(good_model())
    digests = {file.path: file.sha256 for file in fetched.files}
    assert digests == {n: hashlib.sha256(c).hexdigest() for n, c in good_model().items()}
    assert fetched.size_bytes == len(good_weights())


LEFT = {
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00009.safetensors"}}',
    "model-00001-of-00009.safetensors": b"",
    "code/modeling.py": b"raise SystemExit",
    "tokenizer.model/of a folder": b"",
}


def test_what_an_earlier_run_left_is_no_part_of_the_model(tmp_path: Path) -> None:
    write(tmp_path / "into", LEFT)
    files = {**without("tokenizer.json"), "tokenizer.model": b"pieces"}

    fetched = fetch(tmp_path, files)

    assert {path.name for path in fetched.folder.iterdir()} == set(files)
    assert {file.path for file in fetched.files} == set(files)


def test_a_tokenizer_that_an_earlier_run_left_does_not_serve_for_a_model_without_one(
    tmp_path: Path,
) -> None:
    write(tmp_path / "into", {"tokenizer.json": b"{}"})

    with pytest.raises(BadRequestError, match="has no tokenizer"):
        fetch(tmp_path, without("tokenizer.json"))


def test_what_is_only_linked_to_takes_no_room(tmp_path: Path) -> None:
    write(tmp_path / "model", good_model())
    listing = inspect_model(
        local(tmp_path / "model"), credentials=tmp_path / "none", volumes=tmp_path
    )

    assert bytes_there(listing, tmp_path / "into") == listing.size_bytes


def test_a_begun_download_is_left_to_be_gone_on_from(tmp_path: Path) -> None:
    begun = {".partial/model.safetensors.log": b"[]", ".cache/huggingface/note": b""}
    write(tmp_path / "into", begun)

    fetched = fetch(tmp_path, good_model())

    assert all((fetched.folder / name).is_file() for name in begun)


def test_what_lies_here_already_is_not_copied(tmp_path: Path) -> None:
    fetched = fetch(tmp_path, good_model())
    weights = fetched.folder / "model.safetensors"
    assert weights.samefile(tmp_path / "model" / "model.safetensors")


def test_a_pickle_is_taken_where_it_was_allowed_and_nothing_safer_is_there(tmp_path: Path) -> None:
    files = {**without("model.safetensors"), "pytorch_model.bin": b"\x80\x04", "optimizer.pt": b"x"}
    fetched = fetch(tmp_path, files, allowPickle=True)
    assert {file.path for file in fetched.files} == set(files) - {"optimizer.pt"}


def test_remote_code_is_taken_where_it_was_trusted(tmp_path: Path) -> None:
    files = {**good_model(), "modeling.py": b"x = 1", "config.json": b'{"auto_map": {}}'}
    fetched = fetch(tmp_path, files, trustRemoteCode=True)
    assert "modeling.py" in {file.path for file in fetched.files}


def test_a_sharded_model_is_whole(tmp_path: Path) -> None:
    assert fetch(tmp_path, sharded_model()).size_bytes == 2 * len(good_weights("a"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="there is nothing at file://") as error:
        inspect_model(local(tmp_path / "nowhere"), credentials=tmp_path, volumes=tmp_path)
    assert error.value.reason is FailureReason.MODEL_NOT_FOUND


def test_a_claim_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    model = ModelSource(uri="pvc://models/llama")
    with pytest.raises(AccessError, match="'models' is not mounted") as error:
        inspect_model(model, credentials=tmp_path, volumes=tmp_path)
    assert "--volume models=FOLDER" in error.value.advice


def test_a_mounted_claim_is_read(tmp_path: Path) -> None:
    write(tmp_path / "models" / "llama", good_model())
    listing = inspect_model(
        ModelSource(uri="pvc://models/llama"), credentials=tmp_path, volumes=tmp_path
    )
    assert listing.weight_bytes == len(good_weights())
    assert listing.size_bytes == sum(map(len, good_model().values()))


def test_a_path_that_leaves_the_claim_through_a_link_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "outside", good_model())
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama").symlink_to("../outside")
    with pytest.raises(BadRequestError, match="leads out of the folder"):
        inspect_model(ModelSource(uri="pvc://models/llama"), credentials=tmp_path, volumes=tmp_path)
