"""What of the source's own model card is passed on, and that no card stops a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.worker.hostile import good_model

from kubequant.api.contract import SourceCard
from kubequant.api.data import ModelSource
from kubequant_worker.sources import fetch_model
from kubequant_worker.sources.model_card import LARGEST_CARD_BYTES, card_file, read_card
from kubequant_worker.sources.source import RemoteFile

if TYPE_CHECKING:
    from pathlib import Path

LICENSED = SourceCard(license="apache-2.0")


@pytest.mark.parametrize(
    ("text", "card"),
    [
        pytest.param("---\nlicense: apache-2.0\n---\n# A model", LICENSED, id="a licence"),
        pytest.param("\ufeff---\r\nlicense: apache-2.0\r\n---\r\n", LICENSED, id="of Windows"),
        pytest.param(
            "---\nlanguage:\n- en\n- de\npipeline_tag: text-generation\n---\n",
            SourceCard(languages=("en", "de"), pipeline_tag="text-generation"),
            id="languages and task",
        ),
        pytest.param("---\nlanguage: en\n---\n", SourceCard(languages=("en",)), id="one language"),
        pytest.param(
            "---\nlicense: other\nlicense_name: x\nlicense_link: LICENSE\n---\n",
            SourceCard(license="other", license_name="x", license_link="LICENSE"),
            id="a licence of its own",
        ),
        pytest.param("# A model\n---\nlicense: mit\n---\n", None, id="a rule is no head"),
        pytest.param("---\nlicense: mit\n", None, id="a head without end"),
        pytest.param("---\nlicense: [\n---\n", None, id="no YAML"),
        pytest.param("---\n- mit\n---\n", None, id="a list"),
        pytest.param("---\nlicense: {a: b}\nlanguage: [1, {}]\n---\n", None, id="other kinds"),
        pytest.param(f"---\nlicense: {'x' * 300}\n---\n", None, id="too long for a licence"),
        pytest.param('---\nlicense: "a\\nb\\x1b"\n---\n', None, id="a licence of two lines"),
        pytest.param("---\nlicense: !!python/object:os.system x\n---\n", None, id="code"),
        *(
            pytest.param(f"---\nlicense: mit\nx: {value}\n---\n", None, id=f"a value: {value[:24]}")
            for value in (
                "!!bool maybe", "!!int ''", "!!float ''", "!!timestamp x", "!!int x",
                f"!!int {'9' * 5000}",
                "2024-99-99", "!!binary x", "!!pairs x", "!!set [x]", "!!omap [x]", "{[x]: y}",
            )
        ),
        pytest.param(f"---\n{'[' * 5000}\n---\n", None, id="deep"),
        pytest.param(f"---\n{'# x' * 50_000}\nlicense: mit\n---\n", None, id="a head without end"
                     " in sight"),
        pytest.param("", None, id="nothing"),
    ],
)  # fmt: skip
def test_a_card_gives_what_it_says_and_a_broken_one_nothing(
    tmp_path: Path, text: str, card: SourceCard | None
) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())

    assert read_card(tmp_path / "README.md") == card


def test_only_the_card_of_the_folder_itself_is_read_and_none_that_is_too_large() -> None:
    assert card_file([RemoteFile("sub/README.md", 5), RemoteFile("readme.md", 5)]) is None
    assert card_file([RemoteFile("README.md", LARGEST_CARD_BYTES + 1)]) is None
    assert card_file([RemoteFile("README.md", 5)]) is not None


def test_a_fetched_model_knows_its_licence_and_its_folder_holds_no_card(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    card = b"---\nlicense: apache-2.0\n---\n"
    for name, content in {**good_model(), "README.md": card}.items():
        (model / name).write_bytes(content)

    fetched = fetch_model(
        ModelSource.model_validate({"uri": f"file://{model}"}, context={"local": True}),
        into=tmp_path / "into",
        credentials=tmp_path,
    )

    assert fetched.card == LICENSED
    assert not (fetched.folder / "README.md").exists()
