"""What deploy/ installs: generated, least rights, and in step with the code that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from deploy import generate

from kubequant import __version__
from kubequant.controller.environment import variable
from kubequant.controller.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
CONTROLLER = ROOT / "operator" / "kubequant" / "controller"
VARIANTS = ("deploy/install.yaml", "deploy/namespaced/install.yaml")
ADMINISTRATOR = "deploy/namespaced/administrator.yaml"
# The file that holds the rules which each variant binds.
RULES = {VARIANTS[0]: VARIANTS[0], VARIANTS[1]: ADMINISTRATOR}
OPERATOR = "kubequant-operator"


def objects(variant: str, kind: str) -> list[dict[str, Any]]:
    """Return the objects of a kind that a variant installs."""
    documents = yaml.safe_load_all((ROOT / variant).read_text())
    return [document for document in documents if document["kind"] == kind]


def rights(variant: str) -> list[dict[str, Any]]:
    """Return the rules that the operator gets."""
    (role,) = [
        role
        for role in objects(RULES[variant], "ClusterRole")
        if role["metadata"]["name"] == OPERATOR
    ]
    rules: list[dict[str, Any]] = role["rules"]
    return rules


def pod(variant: str) -> dict[str, Any]:
    """Return the operator's pod."""
    (deployment,) = objects(variant, "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def functions() -> set[str]:
    """Return every function and class of the operator as module.Class.function."""
    found: set[str] = set()
    for path in CONTROLLER.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(f"{path.stem}.{node.name}")
            if isinstance(node, ast.ClassDef):
                found |= {
                    f"{path.stem}.{node.name}.{inner.name}"
                    for inner in node.body
                    if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
                }
    return found


@pytest.mark.parametrize("made", [generate.sources, generate.manifests])
def test_what_is_generated_is_what_is_committed(made: Callable[[], dict[str, str]]) -> None:
    for name, text in made().items():
        committed = (ROOT / name).read_text(encoding="utf-8")
        assert committed == text, f"{name}: run `make generate` and commit"


def test_both_variants_give_the_operator_the_same_rights() -> None:
    assert rights(VARIANTS[0]) == rights(VARIANTS[1])


def test_no_right_is_a_wildcard_and_none_reaches_secrets() -> None:
    for rule in rights(VARIANTS[0]):
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not [word for word in words if "*" in word]
        assert not {"secrets", "pods/exec", "pods/log", "serviceaccounts"} & {*rule["resources"]}


def test_each_rule_names_code_that_exists() -> None:
    text = (ROOT / "deploy/chart/templates/clusterrole.yaml").read_text().partition("\nrules:\n")[2]
    comments = re.findall(r"((?:^#.*\n)*)^- apiGroups", text, re.MULTILINE)
    assert len(comments) == len(rights(VARIANTS[0]))

    for comment in comments:
        named = set(re.findall(r"\b[a-z]+\.[A-Za-z_]\w*(?:\.\w+)?", comment))
        named = {name for name in named if (CONTROLLER / f"{name.split('.')[0]}.py").is_file()}
        assert named, comment
        assert named - functions() == set()


def test_the_namespaced_variant_needs_nothing_of_the_cluster() -> None:
    documents = list(yaml.safe_load_all((ROOT / VARIANTS[1]).read_text()))

    assert {one["kind"] for one in documents} == {
        "ServiceAccount", "RoleBinding", "Deployment",
    }  # fmt: skip
    assert [one for one in documents if "namespace" in one["metadata"]] == []
    (binding,) = objects(VARIANTS[1], "RoleBinding")
    (installers,) = [
        role
        for role in objects(ADMINISTRATOR, "ClusterRole")
        if "bind" in role["rules"][0]["verbs"]
    ]
    assert installers["rules"][0]["resourceNames"] == [binding["roleRef"]["name"]]
    (container,) = pod(VARIANTS[1])["containers"]
    assert container["env"] == [
        {
            "name": variable("namespaces"),
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
        }
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_deployment_is_of_this_version(name: str) -> None:
    (deployment,) = objects(name, "Deployment")
    (container,) = pod(name)["containers"]

    assert container["image"] == f"kubequant/operator:{__version__}"
    assert deployment["metadata"]["labels"]["app.kubernetes.io/version"] == __version__


@pytest.mark.parametrize("name", VARIANTS)
def test_the_probes_ask_at_the_port_that_the_operator_has_by_itself(name: str) -> None:
    (container,) = pod(name)["containers"]

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"probes": Settings().probe_port}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "probes"


def test_the_images_pins_agree() -> None:
    shelves = (
        "images/base/torch.txt",
        "images/base/constraints.txt",
        "images/transformers/constraints.txt",
        "operator/constraints.txt",
    )
    ours = _pins("images/gguf/constraints.txt")

    for shelf in shelves:
        pins = _pins(shelf)
        assert pins
        assert {name: pin for name, pin in pins.items() if ours.get(name, pin) != pin} == {}, shelf


def _pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
