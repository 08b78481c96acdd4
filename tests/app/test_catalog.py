import json
import shutil
from pathlib import Path

import pytest

from app import catalog as catalog_module
from app.catalog import Catalog, ServedModel, read_checkpoints
from app.exceptions import (
    StartupError,
    UnknownLanguagePairError,
    UnknownModelError,
    UnsupportedModelError,
)
from models.checkpoint import CheckpointError


@pytest.fixture
def served(checkpoints_dir: Path) -> list[ServedModel]:
    return [ServedModel(info, "cpu", "float32", 0.1) for info in read_checkpoints(checkpoints_dir)]


@pytest.fixture
def catalog(served: list[ServedModel]) -> Catalog:
    return Catalog(served)


def test_default_is_the_first_model_by_name_that_can(catalog: Catalog) -> None:
    # both-ways comes before letters, but cannot generate.
    assert catalog.for_generation(None).name == "letters"
    assert catalog.for_translation(None, None, None).name == "en-fr"
    assert catalog.defaults_of("en-fr") == ["translate"]
    assert catalog.defaults_of("en-fr-small") == []


def test_default_of_the_settings_wins(served: list[ServedModel]) -> None:
    catalog = Catalog(served, default_translate="fr-en-plain")
    assert catalog.for_translation(None, None, None).name == "fr-en-plain"
    with pytest.raises(StartupError, match="GATEHOUSE_DEFAULT_GENERATE_MODEL names both-ways"):
        Catalog(served, default_generate="both-ways")


@pytest.mark.parametrize(
    ("name", "source", "target", "chosen"),
    [
        (None, "en", "fr", "en-fr"),
        (None, "fr", None, "fr-en-plain"),
        (None, None, "en", "fr-en-plain"),
        ("en-fr-small", None, None, "en-fr-small"),
        ("en-fr-small", "en", "fr", "en-fr-small"),
    ],
)
def test_translation_model_fits_the_languages(
    catalog: Catalog, name: str | None, source: str | None, target: str | None, chosen: str
) -> None:
    assert catalog.for_translation(name, source, target).name == chosen


def test_unknown_language_pair_lists_those_there_are(catalog: Catalog) -> None:
    with pytest.raises(UnknownLanguagePairError, match=r"there is: en to fr, fr to en$"):
        catalog.for_translation(None, "en", "de")
    with pytest.raises(UnknownLanguagePairError, match=r"by en-fr; there is: en to fr$"):
        catalog.for_translation("en-fr", "fr", "en")


def test_models_that_cannot_say_why(catalog: Catalog) -> None:
    with pytest.raises(UnsupportedModelError, match="no future to read"):
        catalog.for_generation("both-ways")
    with pytest.raises(UnsupportedModelError, match="answers /translate"):
        catalog.for_generation("en-fr")
    with pytest.raises(UnsupportedModelError, match="not a translation model"):
        catalog.for_translation("letters", None, None)


def test_unknown_model_is_not_repeated(catalog: Catalog) -> None:
    with pytest.raises(UnknownModelError, match="loaded models: both-ways, en-fr") as caught:
        catalog.get("secret")
    assert "secret" not in str(caught.value)


def test_no_model_for_a_task(served: list[ServedModel]) -> None:
    translators = Catalog([model for model in served if model.languages])
    with pytest.raises(UnknownModelError, match="no language model is loaded"):
        translators.for_generation(None)
    with pytest.raises(UnknownModelError, match="no translation model is loaded"):
        Catalog([]).for_translation(None, None, None)


def test_read_checkpoints_says_what_is_missing(checkpoints_dir: Path, tmp_path: Path) -> None:
    assert [info.name for info in read_checkpoints(checkpoints_dir, ["letters"])] == ["letters"]
    assert [info.name for info in read_checkpoints(checkpoints_dir / "letters")] == ["letters"]
    with pytest.raises(StartupError, match="no checkpoint found in"):
        read_checkpoints(tmp_path)
    with pytest.raises(StartupError, match=r"no checkpoint named nope in .*: there are both-ways"):
        read_checkpoints(checkpoints_dir, ["letters", "nope"])


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(root: Path) -> list[Path]:
        raise CheckpointError(f"{root}: Permission denied")

    monkeypatch.setattr(catalog_module, "find_checkpoints", refuse)
    with pytest.raises(StartupError, match="Permission denied"):
        read_checkpoints(tmp_path)


def test_a_link_gives_its_own_name(checkpoints_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(checkpoints_dir / "letters")
    assert [info.name for info in read_checkpoints(tmp_path)] == ["current"]
    assert [info.name for info in read_checkpoints(tmp_path / "current")] == ["current"]
    roundabout = tmp_path / "current" / ".." / "letters" / "."
    assert [info.name for info in read_checkpoints(roundabout)] == ["letters"]


def test_damaged_checkpoint_names_the_file(checkpoints_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints_dir / "letters", tmp_path / "letters")
    config = tmp_path / "letters" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "format_version": 99}))
    with pytest.raises(StartupError, match=r"damaged checkpoint: .*config\.json: .*newer"):
        read_checkpoints(tmp_path)
