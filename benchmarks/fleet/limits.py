"""What else a fleet needs, by size: arithmetic over figures that are measured or assumed.

Assumed figures are of the order of magnitude that such parts have; the table they lead to is good
for what breaks first, not for how many of them to order.
"""

import math
from dataclasses import dataclass

PRICE_PER_REPLICA_HOUR = 0.10
"""Assumed: dollars for two cores and 4 GB of a cloud, without contract."""
PROXY_REQUESTS_PER_CORE = 10_000
"""Assumed: requests/s of one core of nginx or Envoy that ends TLS, connections kept open."""
BYTES_PER_REQUEST = 1_200
"""A short sentence and its answer: 866 bytes with both heads were measured, TLS and TCP added."""
SERIES_PER_REPLICA = 400
"""Measured, rounded up from 394: /metrics with the four shipped models, each asked once."""
SERIES_PER_PROMETHEUS = 2_000_000
"""Assumed: what one Prometheus with 16 GB holds."""
LOG_BYTES_PER_REQUEST = 330
"""Measured, rounded up from 326: the line in JSON that each request has."""
IMAGE_BYTES = 700e6
"""Assumed: the compressed image with PyTorch for processors."""
REPLICAS_PER_NODE = 8
"""Of a machine with 16 cores and a little, at two cores a replica."""
REGISTRY_BYTES_PER_SECOND = 1.25e9
"""Assumed: 10 Gbit/s from the image registry."""
REGIONS = 3
"""At a size where one may be lost."""


@dataclass(frozen=True)
class Needs:
    """What a fleet needs beside its replicas.

    Attributes:
        nodes: machines.
        proxy_cores: cores that only hand requests on.
        gigabits: of traffic, Gbit/s.
        series: of all replicas, in Prometheus.
        prometheus: servers for them.
        log_gb_per_day: of the requests' lines.
        rollout_hours: of a new version, one replica at a time.
        rollout_quarter_minutes: the same, a quarter of the replicas at a time.
        image_minutes: until every node has the new image.
        spare_replicas: more of them, so that one region of three may be lost.
    """

    nodes: int
    proxy_cores: float
    gigabits: float
    series: int
    prometheus: int
    log_gb_per_day: float
    rollout_hours: float
    rollout_quarter_minutes: float
    image_minutes: float
    spare_replicas: int


def needs(peak: float, mean: float, replicas: int, start_seconds: float) -> Needs:
    """What a fleet needs.

    Args:
        peak: requests/s at the highest.
        mean: requests/s over the day.
        replicas: at the highest.
        start_seconds: until a new replica is ready.
    """
    nodes = math.ceil(replicas / REPLICAS_PER_NODE)
    series = replicas * SERIES_PER_REPLICA
    quarter = math.ceil(replicas / 4)
    return Needs(
        nodes=nodes,
        proxy_cores=peak / PROXY_REQUESTS_PER_CORE,
        gigabits=peak * BYTES_PER_REQUEST * 8 / 1e9,
        series=series,
        prometheus=math.ceil(series / SERIES_PER_PROMETHEUS),
        log_gb_per_day=mean * LOG_BYTES_PER_REQUEST * 86_400 / 1e9,
        rollout_hours=replicas * start_seconds / 3600,
        rollout_quarter_minutes=math.ceil(replicas / quarter) * start_seconds / 60,
        image_minutes=nodes * IMAGE_BYTES / REGISTRY_BYTES_PER_SECOND / 60,
        spare_replicas=math.ceil(replicas / (REGIONS - 1)),
    )
