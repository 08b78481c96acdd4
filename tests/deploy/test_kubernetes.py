"""The manifests fit Kubernetes' schemas, and name what the project has."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.exceptions import StartupError
from app.settings import PROJECT_DIR, Settings, load_settings, variable_name
from tests.deploy.kustomizing import Resource, build, load

KUBERNETES = PROJECT_DIR / "deploy" / "kubernetes"
COMPONENTS = ("checkpoints-volume", "checkpoints-image")
OLDEST = "1.30"
"""The first version that knows ``preStop.sleep`` without being asked to."""
IMAGE_VOLUMES = "1.31"
"""The first version that knows volumes of the type ``image``."""
UNITS = {"Mi": 2**20, "Gi": 2**30}


@pytest.fixture(params=["cpu", "gpu", *COMPONENTS])
def overlay(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Both overlays, and one for each component on top of the CPU's."""
    if request.param not in COMPONENTS:
        return KUBERNETES / str(request.param)
    # kustomize follows relative paths alone.
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "mine"
    folder.mkdir()
    asked = {"resources": ["../cpu"], "components": [f"../components/{request.param}"]}
    (folder / "kustomization.yml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    return folder


@pytest.fixture
def resources(overlay: Path) -> list[Resource]:
    return build(overlay)


def _one(resources: list[Resource], kind: str) -> Resource:
    [found] = [resource for resource in resources if resource["kind"] == kind]
    return found


def _pod(resources: list[Resource]) -> dict[str, Any]:
    pod: dict[str, Any] = _one(resources, "Deployment")["spec"]["template"]["spec"]
    return pod


def _container(resources: list[Resource]) -> dict[str, Any]:
    container: dict[str, Any]
    [container] = _pod(resources)["containers"]
    return container


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def _read(name: str) -> str:
    return (PROJECT_DIR / name).read_text(encoding="utf-8")


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


# ---------------------------------------------------------------- Kubernetes itself


def test_every_resource_fits_the_schemas(overlay: Path, resources: list[Resource]) -> None:
    newest = kubernetes_validate.latest_version()
    images = any("image" in volume for volume in _pod(resources)["volumes"])
    for version in (IMAGE_VOLUMES if images else OLDEST, newest):
        for resource in resources:
            kubernetes_validate.validate(resource, version, strict=True)


def test_the_schemas_refuse_what_is_misspelt_or_of_another_type() -> None:
    deployment = _one(build(KUBERNETES / "cpu"), "Deployment")
    misspelt, typed = copy.deepcopy(deployment), copy.deepcopy(deployment)
    misspelt["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    typed["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "long"
    for wrong in (misspelt, typed):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, OLDEST, strict=True)


def test_kubectl_makes_the_same_of_it(overlay: Path, resources: list[Resource]) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl here")
    command = [kubectl, "kustomize", str(overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    made = list(yaml.safe_load_all(done.stdout))
    assert _sorted(made) == _sorted(resources)


def _sorted(value: Any) -> Any:
    """Without the order of lists, which two merges may leave in different ways."""
    if isinstance(value, dict):
        return {name: _sorted(part) for name, part in value.items()}
    if isinstance(value, list):
        return sorted(map(_sorted, value), key=lambda part: json.dumps(part, sort_keys=True))
    return value


def test_selectors_find_the_pods(resources: list[Resource]) -> None:
    deployment = _one(resources, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert _one(resources, "Service")["spec"]["selector"] == labels
    assert _one(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert _one(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    [spread] = _pod(resources)["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    target = _one(resources, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    # The autoscaler alone says how many.
    assert "replicas" not in deployment["spec"]
    account = _one(resources, "ServiceAccount")["metadata"]["name"]
    assert _pod(resources)["serviceAccountName"] == account
    namespace = _one(resources, "Namespace")["metadata"]["name"]
    rest = [resource for resource in resources if resource["kind"] != "Namespace"]
    assert {resource["metadata"]["namespace"] for resource in rest} == {namespace}


# ---------------------------------------------------------------- the project


def test_the_settings_are_settings_and_fit_each_other(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    container = _container(resources)
    named = {one["name"] for one in container["env"]}
    assert named <= {variable_name(setting) for setting in Settings.model_fields}
    for name, value in _environment(container).items():
        monkeypatch.setenv(name, value)
    settings = load_settings(env_file=None)
    assert settings.host == "0.0.0.0"
    [port] = container["ports"]
    assert settings.port == port["containerPort"]
    assert _one(resources, "Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    [rule] = _one(resources, "NetworkPolicy")["spec"]["ingress"]
    assert [one["port"] for one in rule["ports"]] == [port["name"]]
    [workdir] = re.findall(r"^WORKDIR (\S+)$", _read("Dockerfile"), re.MULTILINE)
    assert settings.checkpoints_dir == Path(workdir) / "checkpoints"


def test_the_cluster_adds_no_settings_of_its_own(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a Service named gatehouse puts into pods would keep the service from starting."""
    name = _one(resources, "Service")["metadata"]["name"]
    monkeypatch.setenv(f"{name.upper()}_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(StartupError):
        load_settings(env_file=None)
    assert _pod(resources)["enableServiceLinks"] is False


def test_probes_ask_pages_that_there_are(resources: list[Resource]) -> None:
    container = _container(resources)
    documented = re.findall(r"`(/health/\w+)`", _read("docs/operate.md"))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in documented
        assert asked["port"] == container["ports"][0]["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    startup = container["startupProbe"]
    assert startup["httpGet"]["path"] == "/health/ready"
    # The first start compiles for some 15 s; machines may be several times slower.
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60


def test_an_update_cuts_off_no_request(resources: list[Resource]) -> None:
    container, pod = _container(resources), _pod(resources)
    environment = _environment(container)
    drain = float(environment["GATEHOUSE_DRAIN_TIMEOUT_SECONDS"])
    assert drain >= float(environment["GATEHOUSE_REQUEST_TIMEOUT_SECONDS"])
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + drain + 10
    # A pod that is going away is taken off the list before it takes no more.
    readiness = container["readinessProbe"]
    assert before >= readiness["periodSeconds"]
    strategy = _one(resources, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxUnavailable"] == 0
    assert strategy["maxSurge"] >= 1


def test_memory_is_what_was_measured(resources: list[Resource]) -> None:
    [planned] = re.findall(r"Plan for ([\d.]+) GB", _read("docs/sizing.md"))
    [tmp] = [one["emptyDir"] for one in _pod(resources)["volumes"] if one["name"] == "tmp"]
    assert tmp["medium"] == "Memory"
    needed = float(planned) * 10**9 + _bytes(tmp["sizeLimit"])
    asked = _container(resources)["resources"]
    assert needed <= _bytes(asked["requests"]["memory"]) <= _bytes(asked["limits"]["memory"])
    # One core for HTTP on top of the engine's.
    threads = int(_environment(_container(resources))["GATEHOUSE_NUM_THREADS"])
    assert int(asked["requests"]["cpu"]) == threads + 1


def test_the_container_has_the_walls_that_compose_has(resources: list[Resource]) -> None:
    pod, container = _pod(resources), _container(resources)
    compose = yaml.safe_load(_read("docker-compose.yml"))["services"]["gatehouse"]
    [user] = re.findall(r"^USER (\d+)$", _read("Dockerfile"), re.MULTILINE)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    walls = container["securityContext"]
    assert walls["readOnlyRootFilesystem"] is compose["read_only"] is True
    assert walls["allowPrivilegeEscalation"] is False
    assert walls["capabilities"] == {"drop": compose["cap_drop"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    writable = {one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")}
    assert writable == {"/tmp"}
    [tmpfs] = compose["tmpfs"]
    [size] = re.findall(r"size=(\d+)m", tmpfs)
    [tmp] = [one["emptyDir"] for one in pod["volumes"] if one["name"] == "tmp"]
    assert tmp["sizeLimit"] == f"{size}Mi"
    [cache] = re.findall(r"NUMBA_CACHE_DIR=(\S+)", _read("Dockerfile"))
    assert cache.startswith("/tmp/")


def test_keys_come_from_a_secret_and_nothing_is_waived(resources: list[Resource]) -> None:
    container = _container(resources)
    environment = _environment(container)
    assert "GATEHOUSE_ALLOW_ANONYMOUS" not in environment
    assert not {"GATEHOUSE_API_KEYS", "GATEHOUSE_STATE_KEY"} & environment.keys()
    [keys] = [one["secret"] for one in _pod(resources)["volumes"] if one["name"] == "keys"]
    [mount] = [one for one in container["volumeMounts"] if one["name"] == "keys"]
    [item] = keys["items"]
    file = Path(mount["mountPath"]) / item["path"]
    assert environment["GATEHOUSE_API_KEYS_FILE"] == str(file)
    # The page makes the Secret that the pods look for.
    assert f"secret generic {keys['secretName']}" in _read("docs/kubernetes.md")


def test_components_mount_checkpoints_where_the_service_looks() -> None:
    wanted = _environment(_container(build(KUBERNETES / "cpu")))["GATEHOUSE_CHECKPOINTS_DIR"]
    for component in COMPONENTS:
        patch = load(KUBERNETES / "components" / component / "volume.yml")
        [mount] = _container([patch])["volumeMounts"]
        assert mount["mountPath"] == wanted
        assert mount["readOnly"] is True


def test_the_gpu_is_asked_for_where_models_run_on_it() -> None:
    for name, device in (("cpu", "cpu"), ("gpu", "cuda")):
        container = _container(build(KUBERNETES / name))
        assert _environment(container)["GATEHOUSE_DEVICE"] == device
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpu")
        compose = yaml.safe_load(_read("docker-compose.yml"))["services"]
        service = "gatehouse" if name == "cpu" else "gatehouse-gpu"
        assert container["image"] == compose[service]["image"]


# ---------------------------------------------------------------- metrics


def test_the_autoscaler_asks_for_gauges_that_the_adapter_hands_on(
    resources: list[Resource],
) -> None:
    rows = re.findall(r"^\| `(gatehouse_\w+)` \| gauge \|", _read("docs/metrics.md"), re.MULTILINE)
    [rule] = load(KUBERNETES / "metrics" / "adapter.yml")["rules"]["custom"]
    [series] = re.findall(r'__name__=~"([^"]*)"', rule["seriesQuery"])
    asked = {
        one["pods"]["metric"]["name"]
        for one in _one(resources, "HorizontalPodAutoscaler")["spec"]["metrics"]
    }
    assert asked == {"gatehouse_queue_depth", "gatehouse_rows_running"}
    assert asked <= set(rows)
    assert {row for row in rows if re.fullmatch(series, row)} == asked
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}


def test_prometheus_scrapes_the_pods_under_the_alerts_job() -> None:
    [job] = load(KUBERNETES / "metrics" / "scrape.yml")
    assert f'job="{job["job_name"]}"' in _read("deploy/prometheus/alerts.yml")
    pods = build(KUBERNETES / "cpu")
    kept = {
        one["source_labels"][0]: one["regex"]
        for one in job["relabel_configs"]
        if one.get("action") == "keep"
    }
    labels = _one(pods, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert kept["__meta_kubernetes_pod_label_app_kubernetes_io_name"] in labels.values()
    assert kept["__meta_kubernetes_pod_container_port_name"] == _container(pods)["ports"][0]["name"]
    [namespace] = job["kubernetes_sd_configs"][0]["namespaces"]["names"]
    assert namespace == _one(pods, "Namespace")["metadata"]["name"]
    targets = {one.get("target_label") for one in job["relabel_configs"]}
    assert {"namespace", "pod"} <= targets
