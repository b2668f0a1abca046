"""Tests of the Kubernetes manifests: built by kustomize, validated by Kubernetes' schemas."""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from mev import settings
from mev.server.process import EXIT_GRACE_S
from mev.settings import Settings
from tests.unit.deploy.conftest import Run

KUBERNETES = Path(__file__).parents[3] / "deploy" / "kubernetes"
BUILDS = ("base", "overlays/production", "overlays/trial")
NAMES = {name.upper() for name in Settings.model_fields}
Objects = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def builds(checker: Run) -> dict[str, Objects]:
    """Return the objects of each build by their kind; several of one kind by kind and name."""
    text = checker("kustomize", *(KUBERNETES / name for name in BUILDS)).stdout
    found = {}
    for build, objects in zip(BUILDS, json.loads(text), strict=True):
        found[build] = {each["kind"]: each for each in objects}
        found[build] |= {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}
    return found


def pod(objects: Objects) -> dict[str, Any]:
    spec: dict[str, Any] = objects["StatefulSet"]["spec"]["template"]["spec"]
    return spec


def container(objects: Objects) -> dict[str, Any]:
    (found,) = pod(objects)["containers"]
    return dict(found)


def configured(objects: Objects) -> dict[str, str]:
    """Return the variables that the pod gets from the manifests."""
    listed = {each["name"]: each["value"] for each in container(objects)["env"]}
    return {**objects["ConfigMap"]["data"], **listed}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_object_is_valid(builds: dict[str, Objects], version: str) -> None:
    for objects in builds.values():
        for name, each in objects.items():
            if "/" in name:
                kubernetes_validate.validate(each, version, strict=True)


def test_validator_refuses_an_unknown_field(builds: dict[str, Objects]) -> None:
    wrong = json.loads(json.dumps(builds["base"]["StatefulSet"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_selector_selects_the_pods_of_the_control_plane_and_no_others(
    builds: dict[str, Objects],
) -> None:
    for objects in builds.values():
        labels = objects["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
        selectors = [
            objects["StatefulSet"]["spec"]["selector"]["matchLabels"],
            objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
            objects["Service/mev-control-plane"]["spec"]["selector"],
            objects["Service/mev-control-plane-pods"]["spec"]["selector"],
            *(
                each["labelSelector"]["matchLabels"]
                for each in pod(objects)["topologySpreadConstraints"]
            ),
        ]
        if "PodDisruptionBudget" in objects:
            selectors.append(objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
        assert selectors == [{"app.kubernetes.io/name": "mev-control-plane"}] * len(selectors)
        assert selectors[0].items() <= labels.items()
        clients = objects["NetworkPolicy"]["spec"]["ingress"][0]["from"][0]["podSelector"]
        assert clients == {"matchLabels": {"mev.example/client": "true"}}


def test_settings_are_valid_and_known(
    builds: dict[str, Objects], monkeypatch: pytest.MonkeyPatch
) -> None:
    for objects in builds.values():
        variables = configured(objects)
        assert set(variables) <= NAMES
        with monkeypatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            settings.load()


def test_production_has_three_replicas_with_their_resources(builds: dict[str, Objects]) -> None:
    for build in ("base", "overlays/production"):
        objects = builds[build]
        assert objects["StatefulSet"]["spec"]["replicas"] == 3
        assert container(objects)["resources"] == {
            "requests": {"cpu": "2", "memory": "2Gi"},
            "limits": {"cpu": "4", "memory": "4Gi"},
        }
        scaler = objects["HorizontalPodAutoscaler"]["spec"]
        assert scaler["scaleTargetRef"]["name"] == objects["StatefulSet"]["metadata"]["name"]
        assert scaler["minReplicas"] == 3
        assert int(objects["ConfigMap"]["data"]["KAFKA_TOPIC_PARTITIONS"]) >= scaler["maxReplicas"]
        secret = container(objects)["envFrom"][1]["secretRef"]
        assert secret == {"name": "mev-secrets"}
    assert builds["overlays/trial"]["StatefulSet"]["spec"]["replicas"] == 1
    assert "HorizontalPodAutoscaler" not in builds["overlays/trial"]


def test_pods_have_no_privileges_and_a_read_only_root(builds: dict[str, Objects]) -> None:
    for objects in builds.values():
        assert pod(objects)["securityContext"]["runAsNonRoot"] is True
        assert pod(objects)["automountServiceAccountToken"] is False
        assert container(objects)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = [each["mountPath"] for each in container(objects)["volumeMounts"]]
        assert writable == ["/var/lib/mev", "/tmp"]
        assert configured(objects)["MEV_DATA_DIR"].startswith("/var/lib/mev/")


def test_pod_gets_longer_than_an_orderly_stop_takes(builds: dict[str, Objects]) -> None:
    fields = Settings.model_fields
    stop_s = fields["drain_s"].default + fields["shutdown_timeout_s"].default + EXIT_GRACE_S
    for objects in builds.values():
        pause_s = container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod(objects)["terminationGracePeriodSeconds"] > pause_s + stop_s


def test_ports_are_those_of_the_image_and_open_to_the_clients(builds: dict[str, Objects]) -> None:
    for objects in builds.values():
        (port,) = container(objects)["ports"]
        assert (port["name"], port["containerPort"]) == ("http", 8000)
        (opened,) = objects["NetworkPolicy"]["spec"]["ingress"][0]["ports"]
        assert opened["port"] == port["name"]
        ports = [each["port"] for each in objects["NetworkPolicy"]["spec"]["egress"][1]["ports"]]
        for name in ("KAFKA_BROKERS", "CLICKHOUSE_PORT"):
            value = configured(objects).get(name, "8123")
            assert {int(each.rpartition(":")[2]) for each in value.split(",")} <= set(ports)
