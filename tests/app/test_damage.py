"""What a damaged checkpoint is to the service."""

from pathlib import Path

import pytest

from app.damage import damage_as
from app.exceptions import ReloadError, StartupError
from models.checkpoint import CheckpointError, read_checkpoint


@pytest.mark.parametrize("error", [StartupError, ReloadError])
def test_damage_is_told_with_the_file_by_the_error_that_was_asked_for(
    error: type[StartupError | ReloadError], tmp_path: Path
) -> None:
    problem = pytest.raises(error, match=r"damaged checkpoint: .*config\.json")
    with problem as caught, damage_as(error):
        read_checkpoint(tmp_path)
    assert isinstance(caught.value.__cause__, CheckpointError)


def test_other_errors_go_through() -> None:
    with pytest.raises(KeyError), damage_as(StartupError):
        raise KeyError("something else")
