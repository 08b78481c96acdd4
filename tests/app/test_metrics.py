from prometheus_client import generate_latest

from app.engine.request import EngineStats
from app.metrics import Metrics

STATS = EngineStats(
    waiting=1,
    running=2,
    rows_running=3,
    row_budget=4,
    accepted=15,
    finished=5,
    failed=6,
    cancelled=1,
    last_step_age_seconds=0.5,
)


def test_the_engines_books_are_read_at_every_scrape() -> None:
    metrics = Metrics()
    metrics.watch_engine(lambda: STATS)
    value = metrics.registry.get_sample_value
    assert value("gatehouse_queue_depth") == 1
    assert value("gatehouse_texts_running") == 2
    assert value("gatehouse_rows_running") == 3
    assert value("gatehouse_row_budget") == 4
    assert value("gatehouse_texts_accepted_total") == 15
    assert value("gatehouse_texts_finished_total") == 5
    assert value("gatehouse_texts_failed_total") == 6
    assert value("gatehouse_texts_cancelled_total") == 1
    assert value("gatehouse_last_step_age_seconds") == 0.5


def test_names_begin_with_gatehouse_and_say_what_they_are() -> None:
    metrics = Metrics()
    metrics.watch_engine(lambda: STATS)
    for family in metrics.registry.collect():
        assert family.name.startswith("gatehouse_")
        assert family.documentation.endswith(".")
    assert b"_created" not in generate_latest(metrics.registry)
