"""What breaks under load on a Ray cluster, grows, shrinks and is replaced: no request is lost.

:mod:`tests.deploy.test_ray_serving` has a short form for every day.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import save_language_model, save_translator
from tests.deploy.ray_cluster import Load, RayService, ray_service, wait_for

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.timeout(1_200),
    pytest.mark.usefixtures("chaos_is_asked_for"),
]

LIMIT = 1_000_000
LONG_TOKENS = 1_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of checkpoints of the same names; the models of the second are others."""
    root = tmp_path_factory.mktemp("checkpoints")
    for number, name in enumerate(("old", "new")):
        save_language_model(root / name / "letters", hidden_size=12 + 8 * number)
        save_translator(root / name / "en-fr", "en", "fr", hidden_size=12 + 8 * number)
    return root


@pytest.fixture(scope="module")
def service() -> Iterator[RayService]:
    """A proxy and three nodes with room for a replica each."""
    with ray_service(nodes=3) as service:
        yield service


def deploy(service: RayService, checkpoints: Path, **options: object) -> None:
    service.deploy(checkpoints, options={"num_replicas": 2, **options}, max_new_tokens_limit=LIMIT)


def fingerprints(service: RayService) -> set[str]:
    """Of the models of the replica that answers."""
    return {model["fingerprint"] for model in service.get("/models").json()["models"]}


def test_a_replica_is_killed(service: RayService, root: Path) -> None:
    deploy(service, root / "old")
    load = Load(service, clients=6, long_tokens=LONG_TOKENS)
    with load.busy():
        wait_for(lambda: len(load.answers) > 20)
        service.kill_replica()
        wait_for(lambda: load.lost)
        wait_for(lambda: len(service.replicas()) == 2)
        before = len(load.answers)
        wait_for(lambda: len(load.answers) > before + 20)
    load.check_lost_requests_were_told()
    # What came after the replacement was there went well.
    assert not [answer for answer in load.answers[before + 10 :] if answer.code]


def test_an_update_fails_no_request(service: RayService, root: Path) -> None:
    deploy(service, root / "old")
    old = fingerprints(service)
    load = Load(service, clients=6, long_tokens=LONG_TOKENS)
    with load.busy():
        wait_for(lambda: len(load.answers) > 20)
        deploy(service, root / "new")
        before = len(load.answers)
        wait_for(lambda: len(load.answers) > before + 20)
    # Streams that had begun at an old replica were finished by it.
    assert not load.lost
    assert len({answer.replica for answer in load.answers}) == 4
    assert not fingerprints(service) & old


def test_a_replica_whose_checkpoints_are_broken_never_serves(
    service: RayService, root: Path, tmp_path: Path
) -> None:
    deploy(service, root / "old")
    old = fingerprints(service)
    save_language_model(tmp_path / "broken" / "letters")
    (tmp_path / "broken" / "letters" / "model.safetensors").write_bytes(b"nothing")
    load = Load(service, clients=2)
    with load.busy(), pytest.raises(RuntimeError, match="Failed to update"):
        deploy(service, tmp_path / "broken")
    assert not load.lost
    assert len(service.replicas()) == 2
    assert fingerprints(service) == old
    # Whoever runs it is told the file.
    wait_for(lambda: "model.safetensors" in service.message())


def test_replicas_come_under_a_queue_and_go_when_it_is_gone(
    service: RayService, root: Path
) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 3,
        "look_back_period_s": 11,
    }
    service.deploy(root / "old", options={"autoscaling_config": scaling})
    wait_for(lambda: len(service.replicas()) == 1)
    load = Load(service, clients=12, long_tokens=500)
    with load.busy():
        wait_for(lambda: len(service.replicas()) == 2)
        before = len(load.answers)
        wait_for(lambda: len({a.replica for a in load.answers[before:]}) == 2)
    wait_for(lambda: len(service.replicas()) == 1)
    assert not load.lost


def test_a_node_is_killed(service: RayService, root: Path) -> None:
    deploy(service, root / "old")
    load = Load(service, clients=6, long_tokens=LONG_TOKENS)
    homes = {replica["node_id"] for replica in service.replicas()}
    (node, *_) = [node for node in service.cluster.nodes if node.node_id in homes]
    with load.busy():
        wait_for(lambda: len(load.answers) > 20)
        service.cluster.kill_node(node)
        killed_at = time.monotonic()
        wait_for(lambda: node.node_id not in {r["node_id"] for r in service.replicas()})
        wait_for(lambda: len(service.replicas()) == 2)
        print(f"\ntwo replicas again {time.monotonic() - killed_at:.1f} s after the node's end")
        before = len(load.answers)
        wait_for(lambda: len(load.answers) > before + 20)
    load.check_lost_requests_were_told()
    assert load.lost
