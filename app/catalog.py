"""Which models are loaded, which is the default of each endpoint, and who translates what."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.damage import damage_as
from app.exceptions import (
    StartupError,
    UnknownLanguagePairError,
    UnknownModelError,
    UnsupportedModelError,
)
from models.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    checkpoint_name,
    find_checkpoints,
    read_checkpoint,
)
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.tokenizers import Tokenizer

GENERATE, TRANSLATE = "generate", "translate"


@dataclass(frozen=True)
class ServedModel:
    """A loaded checkpoint and where it lives.

    Attributes:
        info: everything about it but its weights.
        device: where the weights are, ``cpu`` or ``cuda:N``.
        precision: what it computes in.
        load_seconds: how long loading took.
        capability: what its arithmetic depends on besides: see
            :func:`app.engine.device.describe_arithmetic`.
        revision: how often it was replaced since the service started.
    """

    info: CheckpointInfo
    device: str
    precision: str
    load_seconds: float
    capability: str = ""
    revision: int = 0

    @property
    def name(self) -> str:
        """The name that requests give."""
        return self.info.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can be asked for: generate, translate, or nothing."""
        return tasks_of(self.info)

    @property
    def languages(self) -> tuple[str, str] | None:
        """Source and target language of a translation model."""
        if self.info.languages is None:
            return None
        return self.info.languages.source, self.info.languages.target

    @property
    def source_tokenizer(self) -> Tokenizer:
        """Turns what the model reads into tokens."""
        tokenizers = self.info.tokenizers
        return tokenizers["text"] if "text" in tokenizers else tokenizers["source"]

    @property
    def target_tokenizer(self) -> Tokenizer:
        """Turns what the model writes into text."""
        tokenizers = self.info.tokenizers
        return tokenizers["text"] if "text" in tokenizers else tokenizers["target"]

    @property
    def has_attention(self) -> bool:
        """Whether its answers can be aligned with the source."""
        config = self.info.config
        return isinstance(config, Seq2SeqConfig) and config.decoder != "context"


def tasks_of(info: CheckpointInfo) -> tuple[str, ...]:
    """What a checkpoint can be asked for."""
    if isinstance(info.config, LanguageModelConfig):
        return () if info.config.bidirectional else (GENERATE,)
    return (TRANSLATE,) if info.languages is not None else ()


def read_checkpoints(root: Path, names: Sequence[str] = ()) -> list[CheckpointInfo]:
    """Read everything but the weights of the checkpoints to serve.

    Args:
        root: folder of checkpoint folders, or one checkpoint folder.
        names: which of them; empty means all.

    Raises:
        StartupError: there is none, a named one is missing, or one is damaged.
    """
    try:
        found = {checkpoint_name(path): path for path in find_checkpoints(root)}
    except CheckpointError as error:
        raise StartupError(f"checkpoints cannot be looked for: {error}") from error
    if not found:
        raise StartupError(
            f"no checkpoint found in {root}: give another folder with --checkpoints or "
            "GATEHOUSE_CHECKPOINTS_DIR, or train a model with 'gatehouse train'"
        )
    missing = [name for name in names if name not in found]
    if missing:
        raise StartupError(
            f"no checkpoint named {', '.join(missing)} in {root}: there are {', '.join(found)}"
        )
    with damage_as(StartupError):
        return [read_checkpoint(found[name]) for name in names or found]


def choose_default(
    checkpoints: Sequence[CheckpointInfo], task: str, name: str | None
) -> str | None:
    """The model that answers requests for a task that name none; None where none can.

    Args:
        checkpoints: of the models.
        task: what it must be able to do.
        name: the setting's choice; None takes the first by name that can, a rule that nobody
            has to look up: sizes tell nothing of quality, and perplexities of models with
            different tokens cannot be compared.

    Raises:
        StartupError: the chosen one is not loaded or cannot do the task.
    """
    able = sorted(info.name for info in checkpoints if task in tasks_of(info))
    if name is None:
        return able[0] if able else None
    if name not in able:
        raise StartupError(
            f"GATEHOUSE_DEFAULT_{task.upper()}_MODEL names {name}, which is not a loaded "
            f"model that can {task}; there is: {', '.join(able) or 'none'}"
        )
    return name


class Catalog:
    """The loaded models and how a request finds its own.

    Args:
        models: the loaded models.
        default_generate: name of the default of ``/generate``: see :func:`choose_default`.
        default_translate: likewise for ``/translate``.

    Raises:
        StartupError: a default is not loaded or cannot do its task.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        default_generate: str | None = None,
        default_translate: str | None = None,
    ) -> None:
        self._models = {model.name: model for model in sorted(models, key=lambda m: m.name)}
        infos = [model.info for model in self.models]
        self._defaults = {
            GENERATE: choose_default(infos, GENERATE, default_generate),
            TRANSLATE: choose_default(infos, TRANSLATE, default_translate),
        }

    @property
    def models(self) -> list[ServedModel]:
        """All loaded models, by name."""
        return list(self._models.values())

    def replace(self, model: ServedModel) -> None:
        """Put a model in the place of the one of its name, if any, which does the same tasks."""
        self._models = dict(sorted({**self._models, model.name: model}.items()))

    def remove(self, name: str) -> None:
        """Take a model out that is no task's default; nothing where it is not there."""
        self._models.pop(name, None)

    def defaults_of(self, name: str) -> list[str]:
        """The tasks whose default model this is."""
        return [task for task, default in self._defaults.items() if default == name]

    def get(self, name: str) -> ServedModel:
        """The model of a name.

        Raises:
            UnknownModelError: none has it.
        """
        try:
            return self._models[name]
        except KeyError:
            loaded = ", ".join(self._models) or "none"
            raise UnknownModelError(f"no such model is loaded; loaded models: {loaded}") from None

    def for_generation(self, name: str | None) -> ServedModel:
        """The language model that a request means.

        Raises:
            UnknownModelError: no model has the name, or none at all generates.
            UnsupportedModelError: the model cannot generate.
        """
        model = self.get(name or self._default(GENERATE, "no language model is loaded"))
        if GENERATE in model.tasks:
            return model
        if isinstance(model.info.config, Seq2SeqConfig):
            raise UnsupportedModelError(
                f"{model.name} is a translation model: it answers /translate, not /generate"
            )
        raise UnsupportedModelError(
            f"{model.name} is bidirectional: it reads a text from both ends, and at generation "
            "time there is no future to read, so it cannot continue one"
        )

    @property
    def language_pairs(self) -> list[tuple[str, str]]:
        """Every pair of languages that a loaded model translates, the one that it reads first."""
        return sorted({model.languages for model in self.models if model.languages is not None})

    @property
    def languages(self) -> list[str]:
        """Every language that a loaded model reads or writes.

        First those of the default translation model, the one that it reads before the one that
        it writes, then the others by code.
        """
        default = self._defaults[TRANSLATE]
        first = (self.get(default).languages or ()) if default is not None else ()
        others = sorted({language for pair in self.language_pairs for language in pair})
        return list(dict.fromkeys((*first, *others)))

    def for_translation(
        self, name: str | None, source: str | None, target: str | None
    ) -> ServedModel:
        """The translation model that a request means.

        A named model must translate the pair that is given. Without a name, the default model
        is taken if it fits what is given of the pair, else the first by name that does.

        Raises:
            UnknownModelError: no model has the name, or none at all translates.
            UnsupportedModelError: the model cannot translate.
            UnknownLanguagePairError: no model, or not the named one, translates the pair.
        """
        if name is not None:
            candidates = [self.get(name)]
            if TRANSLATE not in candidates[0].tasks:
                raise UnsupportedModelError(f"{name} is not a translation model")
        else:
            default = self._default(TRANSLATE, "no translation model is loaded")
            candidates = [m for m in self.models if TRANSLATE in m.tasks]
            candidates.sort(key=lambda m: m.name != default)
        for model in candidates:
            pair = model.languages
            if pair is not None and source in (None, pair[0]) and target in (None, pair[1]):
                return model
        there = ", ".join(
            sorted({f"{m.languages[0]} to {m.languages[1]}" for m in candidates if m.languages})
        )
        raise UnknownLanguagePairError(
            f"this language pair is not translated{f' by {name}' if name else ''}; "
            f"there is: {there}"
        )

    def _default(self, task: str, missing: str) -> str:
        name = self._defaults[task]
        if name is None:
            raise UnknownModelError(missing)
        return name
