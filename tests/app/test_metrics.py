import asyncio
import random
from functools import partial

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.engine.client import EventStream
from app.engine.inline import InlineLink
from app.engine.request import EngineStats, StepReport
from app.engine.supervisor import SupervisedEngine
from app.exceptions import NotReadyError, QueueFullError
from app.metrics import Metrics
from tests.app.engine.fake_engine import DIES, FAILS, ROW_BUDGET, ends_of, load_fake, make_request

STATS = EngineStats(
    waiting=1,
    running=2,
    rows_running={"one": 3, "other": 0},
    row_budget=4,
    accepted=15,
    finished=5,
    failed=6,
    cancelled=1,
    restarts=7,
    last_step_age_seconds=0.5,
)


def test_the_engines_books_are_read_at_every_scrape() -> None:
    metrics = Metrics()
    metrics.watch_engine(lambda: STATS)
    value = metrics.registry.get_sample_value
    assert value("gatehouse_queue_depth") == 1
    assert value("gatehouse_texts_running") == 2
    assert value("gatehouse_rows_running", {"model": "one"}) == 3
    assert value("gatehouse_rows_running", {"model": "other"}) == 0
    assert value("gatehouse_row_budget") == 4
    assert value("gatehouse_texts_accepted_total") == 15
    assert value("gatehouse_texts_finished_total") == 5
    assert value("gatehouse_texts_failed_total") == 6
    assert value("gatehouse_texts_cancelled_total") == 1
    assert value("gatehouse_engine_restarts_total") == 7
    assert value("gatehouse_last_step_age_seconds") == 0.5


def test_steps_are_counted_by_model() -> None:
    metrics = Metrics()
    metrics.observe_steps(
        [
            StepReport("one", 3, 0.25),
            StepReport("one", 64, 0.5, positions_read=20, positions_attended=9, padding_attended=4),
            StepReport("other", 0, 1.0, positions_read=7),
        ]
    )
    value = metrics.registry.get_sample_value
    one, other = {"model": "one"}, {"model": "other"}
    assert value("gatehouse_step_rows_sum", one) == 67
    assert value("gatehouse_step_rows_bucket", {**one, "le": "4.0"}) == 1
    assert value("gatehouse_step_rows_bucket", {**one, "le": "64.0"}) == 2
    assert value("gatehouse_step_seconds_sum", one) == 0.75
    assert value("gatehouse_positions_read_total", one) == 20
    assert value("gatehouse_positions_attended_total", one) == 9
    assert value("gatehouse_padding_attended_total", one) == 4
    # A step that only reads advances no row.
    assert value("gatehouse_step_rows_count", other) is None
    assert value("gatehouse_step_seconds_count", other) == 1
    assert value("gatehouse_padding_attended_total", other) == 0


def test_names_begin_with_gatehouse_and_say_what_they_are() -> None:
    metrics = Metrics()
    metrics.watch_engine(lambda: STATS)
    for family in metrics.registry.collect():
        assert family.name.startswith("gatehouse_")
        assert family.documentation.endswith(".")
    assert b"_created" not in generate_latest(metrics.registry)


def scrape(metrics: Metrics) -> dict[str, float]:
    """Values by name, summed over models, as a scraper gets them."""
    text = generate_latest(metrics.registry).decode()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def adds_up(values: dict[str, float]) -> bool:
    kinds = ("texts_finished_total", "texts_failed_total", "texts_cancelled_total")
    parts = (*kinds, "texts_running", "queue_depth")
    total = sum(values[f"gatehouse_{part}"] for part in parts)
    return total == values["gatehouse_texts_accepted_total"]


def test_what_must_add_up_does_at_every_scrape_under_random_traffic() -> None:
    async def scenario() -> None:
        choose = random.Random(7)
        metrics = Metrics()
        engine = SupervisedEngine(
            partial(InlineLink, load_fake),
            queue_capacity=20,
            row_budget=ROW_BUDGET,
            on_steps=metrics.observe_steps,
        )
        metrics.watch_engine(engine.stats)
        assert adds_up(scrape(metrics))
        await engine.start()
        streams: list[EventStream] = []
        next_id, seen_waiting, seen_running = 0, 0.0, 0.0
        deadly: set[int] = set()
        for turn in range(200):
            dies = turn == 100
            prompt = (DIES if dies else choose.choice([5, 5, FAILS]),)
            requests = [
                make_request(
                    next_id + i,
                    model=choose.choice(["count", "slow"]),
                    prompt=prompt,
                    tokens=choose.randrange(1, 30),
                    rows=choose.randrange(1, 9),
                    timeout_seconds=float("inf") if dies else choose.choice([0.01, float("inf")]),
                )
                for i in range(choose.randrange(1, 5))
            ]
            deadly |= {request.request_id for request in requests if dies}
            next_id += len(requests)
            while True:
                try:
                    streams.append(engine.submit(requests))
                except (QueueFullError, NotReadyError):
                    await asyncio.sleep(0.005)
                    if dies:  # the engine is to die, however busy the machine is
                        continue
                break
            engine.cancel(set(choose.choices(range(next_id), k=2)) - deadly)
            await asyncio.sleep(choose.choice([0, 0.001]))
            values = scrape(metrics)
            assert adds_up(values)
            seen_waiting = max(seen_waiting, values["gatehouse_queue_depth"])
            seen_running = max(seen_running, values["gatehouse_texts_running"])
        for stream in streams:
            await ends_of(stream)
        values = scrape(metrics)
        assert adds_up(values)
        assert values["gatehouse_texts_running"] == values["gatehouse_queue_depth"] == 0
        # The traffic was what it is meant to be.
        assert min(seen_waiting, seen_running) > 0
        assert values["gatehouse_texts_accepted_total"] > 50
        for kind in ("finished", "failed", "cancelled"):
            assert values[f"gatehouse_texts_{kind}_total"] > 0
        assert values["gatehouse_engine_restarts_total"] == 1
        assert values["gatehouse_step_rows_sum"] > 0
        # The fake engine attends to two positions for each row, one of them padding.
        rows = values["gatehouse_step_rows_sum"]
        assert values["gatehouse_positions_attended_total"] == 2 * rows
        assert values["gatehouse_padding_attended_total"] == rows
        await engine.close()

    asyncio.run(scenario())
