"""How the comparison with Ray is set up, and how its figures are told."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ray_serving import (
    PARTS,
    contestants,
    parts_table,
    processor_seconds,
    serve_config,
    table,
)

ROW: dict[str, Any] = {
    "name": "Ray, 1 x 2 threads",
    "connections": 16,
    "requests_per_second": 123.4,
    "p50_ms": 10.0,
    "p97_ms": 20.0,
    "mean_ms": 11.0,
    "inside_mean_ms": 7.0,
    "cpu_ms_per_request": dict.fromkeys(PARTS, 1.5),
    "failures": {"503": 2},
}


def test_every_contestant_has_the_same_threads_in_all() -> None:
    found = contestants(4, [1, 2, 4])
    assert [max(1, one.replicas) * one.engine_threads for one in found] == [4, 4, 4, 4]
    assert [one.replicas for one in found] == [0, 1, 2, 4]
    with pytest.raises(ValueError, match="shared out"):
        contestants(2, [3])


def test_the_configuration_is_what_ray_takes(tmp_path: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
    contestant = contestants(2, [2])[1]
    config = schema.ServeDeploySchema.model_validate(serve_config(contestant, tmp_path, 8000))
    (deployment,) = config.applications[0].deployments
    assert deployment.num_replicas == 2
    assert config.applications[0].args["settings"]["num_threads"] == 1


def test_processor_time_is_that_of_a_process_and_all_below_it() -> None:
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    wait = "import sys; sys.stdin.read()"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy + wait!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as leader:
        deadline = time.monotonic() + 60
        while processor_seconds(leader.pid)["rest_of_ray"] < 0.3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert leader.stdin is not None
        leader.stdin.close()


def test_the_tables_tell_all() -> None:
    assert "| Ray, 1 x 2 threads | 16 | 123 | 10.0 | 20.0 | 2 |" in table([ROW])
    line = parts_table([ROW]).splitlines()[-1]
    assert line == "| Ray, 1 x 2 threads | 16 | 11.0 | 7.0 |" + " 1.50 |" * len(PARTS)
