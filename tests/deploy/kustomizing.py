"""What ``kubectl kustomize`` makes of ``deploy/kubernetes``, as far as those files use it.

Kustomize is a program in Go that no Python package carries. Resources, components, strategic
merge patches by path, and images are all that the files have; anything else is refused here. Where
kubectl is installed, a test holds this against the real one.
"""

from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

KEYS = {
    "containers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists that a patch adds to, by the key that tells elements apart; it replaces all others."""
KNOWN = {"apiVersion", "kind", "resources", "components", "images", "patches"}


def build(folder: Path) -> list[Resource]:
    """The resources that an overlay gives, patched."""
    return _apply(folder, [])


def load(path: Path) -> Any:
    """The one document of a file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """A strategic merge: maps by key, the lists of :data:`KEYS` by theirs, the rest replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        joined = {name: merge(base[name], patch[name], name) for name in base.keys() & patch.keys()}
        return {**base, **patch, **joined}
    if isinstance(base, list) and isinstance(patch, list) and field in KEYS:
        key = KEYS[field]
        parts = {one[key]: one for one in base}
        for one in patch:
            parts[one[key]] = merge(parts[one[key]], one) if one[key] in parts else one
        return list(parts.values())
    return patch


def _apply(folder: Path, resources: list[Resource]) -> list[Resource]:
    """What a kustomization makes of the resources so far and of its own."""
    asked = load(folder / "kustomization.yml")
    assert asked.keys() <= KNOWN, asked.keys() - KNOWN
    for name in asked.get("resources", []):
        path = folder / name
        resources = resources + (build(path) if path.is_dir() else [load(path)])
    for name in asked.get("components", []):
        resources = _apply(folder / name, resources)
    for entry in asked.get("patches", []):
        assert entry.keys() == {"path"}
        patch = load(folder / entry["path"])
        targets = [_identity(resource) for resource in resources]
        place = targets.index(_identity(patch))
        resources[place] = merge(resources[place], patch)
    for image in asked.get("images", []):
        for resource in resources:
            _name_image(resource, image)
    return resources


def _identity(resource: Resource) -> tuple[str, str, str, str | None]:
    about = resource["metadata"]
    return resource["apiVersion"], resource["kind"], about["name"], about.get("namespace")


def _name_image(resource: Resource, image: dict[str, str]) -> None:
    if resource["kind"] != "Deployment":
        return
    for container in resource["spec"]["template"]["spec"]["containers"]:
        if container["image"] == image["name"]:
            name = image.get("newName", image["name"])
            container["image"] = f"{name}:{image['newTag']}"
