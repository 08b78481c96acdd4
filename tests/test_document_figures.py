"""The README's speed is that of the current run in docs/benchmarks.md."""

import re

from tests.markdown_pages import ROOT

SPEED = re.compile(
    r"kept up with ([\d,]+) requests a second: (\S+) times those of plain FastAPI over the same "
    r"model, and (\S+) times those of LitServe, both in float32"
)
RATIOS = re.compile(
    r"That is (\S+) times plain FastAPI's requests, (\S+) times LitServe's in float32"
)


def _page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _first_table() -> dict[tuple[str, str], str]:
    """Requests a second of the first table, by server and precision."""
    _, _, section = _page("docs/benchmarks.md").partition("\n## Serving\n")
    lines = section.partition("\n| ")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert rows[0][:3] == ["server", "precision", "requests/s"]
    return {(server, precision): rate for server, precision, rate, *_ in rows[2:]}


def test_the_readme_has_the_speed_of_the_first_table() -> None:
    [(rate, plain, litserve)] = SPEED.findall(_page("README.md"))
    table = _first_table()
    assert rate.replace(",", "") == table["gatehouse", "int8"]
    [first, *_] = RATIOS.findall(_page("docs/benchmarks.md"))
    assert (plain, litserve) == first
    for shown, peer in ((plain, "plain"), (litserve, "litserve")):
        # Both rates are rounded to whole requests.
        ours, theirs = (int(table[key]) for key in (("gatehouse", "int8"), (peer, "float32")))
        digits = len(shown.partition(".")[2])
        lowest, highest = (ours - 0.5) / (theirs + 0.5), (ours + 0.5) / (theirs - 0.5)
        assert round(lowest, digits) <= float(shown) <= round(highest, digits), peer
