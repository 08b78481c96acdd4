"""What all tests share: machines without a GPU or a browser say so, and none is hurried."""

import shutil

import hypothesis
import pytest

# Names under which Debian, Fedora and others install a browser that runs without a screen.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# A busy machine is slow, not wrong: the time limit of pytest-timeout is the only one.
hypothesis.settings.register_profile("gatehouse", deadline=None)
hypothesis.settings.load_profile("gatehouse")
# What `make fuzz` asks for: many more, and others each time.
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=2_000)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors as small as the tests' cost more to share out than to compute."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chaos_is_asked_for(request: pytest.FixtureRequest) -> None:
    """For what takes minutes, and has a short form for every day."""
    if "chaos" not in request.config.getoption("markexpr"):
        pytest.skip("takes minutes: make chaos runs it, or -m chaos")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots",
        action="store_true",
        help="write the pictures of the page into docs/screenshots",
    )
    parser.addoption(
        "--documents",
        action="store_true",
        help="write what the examples of the pages print into the pages, where it has changed",
    )
    parser.addoption(
        "--examples",
        type=int,
        default=20,
        help="how many requests of each kind schemathesis tries at each endpoint",
    )
    parser.addoption("--seed", type=int, default=1, help="of what schemathesis draws")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_browser() -> bool:
    return any(shutil.which(name) for name in BROWSERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with a reason that the summary shows, what this machine cannot run."""
    for name, is_there, reason in (
        ("gpu", _has_gpu, "torch sees no CUDA device here"),
        ("browser", _has_browser, f"none of {', '.join(BROWSERS)} is installed here"),
    ):
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and not is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
