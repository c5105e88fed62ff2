"""The Helm chart: what its values become, by helm itself and by the operator that reads them."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
import yaml
from deploy.generate import CHART, CRD, NAMESPACE, ROOT, rendered
from tests.testbed.tools import tool

from kubequant import __version__
from kubequant.api.base import camel
from kubequant.controller.catalog import ImageKey
from kubequant.controller.environment import PREFIX, read_settings
from kubequant.controller.settings import Settings

# Every setting, as an administrator may write it, and none as it is by itself.
SETTINGS: dict[str, Any] = {
    "imageRegistry": "example.com/team/",
    "images": {"gguf": "example.com/gguf@sha256:" + "0" * 64},
    "imagePullPolicy": "Always",
    "cpuResources": {"requests": {"cpu": "2", "memory": "3Gi"}, "limits": {"memory": "3Gi"}},
    "gpuResources": {"requests": {}, "limits": {"memory": "64Gi"}},
    "memoryCeiling": "128Gi",
    "allowRemoteCode": True,
    "allowPickle": True,
    "allowedServiceAccounts": ["irsa", "other"],
    "allowedEnv": ["HF_ENDPOINT", "NCCL_*"],
    "allowedAnnotations": ["example.com/*"],
    "allowedLabels": [],
    "runAsUser": 1_000_660_000,
    "logFormat": "Text",
    "concurrency": 7,
    "probePort": 9000,
}


def made(**values: Any) -> list[dict[str, Any]]:
    """Return the objects that helm makes; `__` stands for the dot in a value's name."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return [one for one in yaml.safe_load_all(rendered(named)) if one]


def kinds(**values: Any) -> list[str]:
    return sorted(one["kind"] for one in made(**values))


def refusal(**values: Any) -> str:
    """Return what helm says of values that it refuses."""
    with pytest.raises(ValueError, match="values") as refused:
        made(**values)
    return str(refused.value)


def operator(**values: Any) -> dict[str, Any]:
    """Return the operator's pod."""
    (deployment,) = (one for one in made(**values) if one["kind"] == "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


def container(**values: Any) -> dict[str, Any]:
    (found,) = operator(**values)["spec"]["containers"]
    return dict(found)


def read(monkeypatch: pytest.MonkeyPatch, env: list[dict[str, Any]]) -> Settings:
    """Return what the operator reads from a container's variables."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for one in env:
        monkeypatch.setenv(one["name"], one["value"])
    return read_settings()


def test_helm_finds_nothing_to_mend() -> None:
    done = subprocess.run(
        [tool("helm"), "lint", "--strict", CHART], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_it_is_installed_without_any_value() -> None:
    assert kinds() == [
        "ClusterRole", "ClusterRole", "ClusterRole", "ClusterRoleBinding",
        "CustomResourceDefinition", "Deployment", "ServiceAccount",
    ]  # fmt: skip
    assert container()["env"] == []
    assert container()["image"] == f"kubequant/operator:{__version__}"


def test_the_operator_reads_every_setting_as_it_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(SETTINGS) == {camel(name) for name in Settings.model_fields} - {"namespaces"}
    settings = read(monkeypatch, container(settings=SETTINGS)["env"])
    for name in Settings.model_fields:
        if name not in {"namespaces", "images"}:
            found = settings.model_dump(mode="json", by_alias=True)[name]
            assert found == SETTINGS[camel(name)], name
    assert settings.images[ImageKey.GGUF] == SETTINGS["images"]["gguf"]
    assert settings.images[ImageKey.AWQ_LEGACY] == (
        f"example.com/team/kubequant/awq-legacy:{__version__}"
    )


def test_the_operators_own_image_and_port_follow_its_settings() -> None:
    found = container(settings=SETTINGS)
    assert found["image"] == f"example.com/team/kubequant/operator:{__version__}"
    assert found["ports"] == [{"name": "probes", "containerPort": SETTINGS["probePort"]}]


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({"image__tag": "1.2"}, "kubequant/operator:1.2"),
        (
            {"image__tag": "1.2", "image__digest": "sha256:" + "a" * 64},
            "kubequant/operator@sha256:" + "a" * 64,
        ),
        ({"image__repository": "elsewhere/operator"}, f"elsewhere/operator:{__version__}"),
    ],
)
def test_an_image_is_named_by_tag_or_digest(values: dict[str, str], image: str) -> None:
    assert container(**values)["image"] == image


def test_in_its_own_namespace_it_has_rights_nowhere_else() -> None:
    values = {"watch__scope": "Release", "rbac__clusterRoles": False, "crds__install": False}
    objects = made(**values)
    assert [one["kind"] for one in objects] == ["ServiceAccount", "RoleBinding", "Deployment"]
    assert {one["metadata"]["namespace"] for one in objects} == {NAMESPACE}
    (variable,) = container(**values)["env"]
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"


def test_in_listed_namespaces_it_is_bound_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"watch__scope": "Listed", "watch__namespaces": ["team-a", "team-b"]}
    bindings = [one for one in made(**values) if one["kind"].endswith("RoleBinding")]
    assert [(one["kind"], one["metadata"]["namespace"]) for one in bindings] == [
        ("RoleBinding", "team-a"),
        ("RoleBinding", "team-b"),
    ]
    assert {one["subjects"][0]["namespace"] for one in bindings} == {NAMESPACE}
    settings = read(monkeypatch, container(**values)["env"])
    assert settings.namespaces == ("team-a", "team-b")


def test_the_definition_is_ours_and_is_kept_when_the_release_goes() -> None:
    def definition(**values: Any) -> dict[str, Any]:
        (found,) = (one for one in made(**values) if one["kind"] == "CustomResourceDefinition")
        return dict(found)

    kept = definition()
    assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert kept == definition(crds__keep=False)
    assert kept == yaml.safe_load((ROOT / CRD).read_text())
    assert "CustomResourceDefinition" not in kinds(crds__install=False)


def test_what_an_administrator_installs_for_teams_starts_nothing() -> None:
    found = kinds(operator__create=False, rbac__installers=True)
    assert found == [*["ClusterRole"] * 4, "CustomResourceDefinition"]


def test_what_is_said_of_the_pod_reaches_it() -> None:
    toleration = {"key": "gpu", "operator": "Exists"}
    said = {
        "podLabels": {"team": "ml"},
        "podAnnotations": {"example.com/note": "a: b"},
        "nodeSelector": {"pool": "system"},
        "tolerations": [toleration],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "resources": {"limits": {"memory": "1Gi"}},
        "runAsUser": 0,
    }
    pod = operator(
        **{f"operator__{name}": value for name, value in said.items()},
        imagePullSecrets=[{"name": "pull"}],
    )
    assert pod["metadata"]["labels"]["team"] == "ml"
    assert pod["metadata"]["annotations"] == said["podAnnotations"]
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"pool": "system"}
    assert spec["tolerations"] == [toleration]
    assert spec["affinity"] == {"nodeAffinity": {}}
    assert spec["priorityClassName"] == "high"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["containers"][0]["resources"] == {"limits": {"memory": "1Gi"}, "requests": {
        "cpu": "100m", "memory": "128Mi",
    }}  # fmt: skip
    # As OpenShift wants it: the cluster chooses whom it runs as, and never root.
    assert set(spec["securityContext"]) == {"runAsNonRoot", "seccompProfile"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"settings": {"concurency": 5}}, ("settings", "concurency")),
        ({"settings": {"concurrency": 0}}, ("settings/concurrency", "minimum")),
        ({"settings": {"memoryCeiling": "64 GB"}}, ("settings/memoryCeiling", "does not match")),
        ({"settings": {"images": {"ggml": "x"}}}, ("settings/images", "ggml")),
        ({"settings": {"cpuResources": {"limit": {}}}}, ("settings/cpuResources", "limit")),
        ({"settings": {"allowPickle": "yes"}}, ("settings/allowPickle", "boolean")),
        ({"settings": {"namespaces": ["a"]}}, ("settings", "namespaces")),
        ({"watch.scope": "Some"}, ("watch/scope", "All")),
        ({"watch.scope": "Listed"}, ("watch/namespaces", "minItems")),
        ({"watch.namespaces": ["a"]}, ("watch/namespaces", "maxItems")),
        ({"replicas": 2}, ("replicas",)),
        ({"image": {"digest": "latest"}}, ("image/digest", "does not match")),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_what_no_value_may_hold_is_refused_by_name(
    values: dict[str, Any], words: tuple[str, ...]
) -> None:
    said = refusal(**values)
    for word in words:
        assert word in said
