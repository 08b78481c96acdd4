"""Lines to translations, as ``gatehouse translate`` makes them, without an event loop.

The decoder, the preparation of texts, the limits and the precision are the service's own. In
int8 a line's translation does not depend on who shares its batch, so that the translations are
those of the service to the last byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from app.damage import damage_as
from app.engine.device import resolve_precision
from app.exceptions import InvalidRequestError, StartupError
from app.lines import one_line
from app.service.limits import Limits
from models.checkpoint import read_checkpoint
from models.checkpoint_model import load_model
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams, Hypothesis, default_translation_length
from models.precision import set_precision
from models.seq2seq import Seq2Seq
from models.tokenizers import source_prompt


@dataclass(frozen=True)
class CorpusOptions:
    """How to translate.

    Attributes:
        checkpoint: folder of the model.
        fingerprint: that the folder must have.
        precision: to compute in.
        beam_size: width of the beam search; 1 is greedy.
        length_penalty: alpha of the beam's score.
        limits: what a line may ask for.
        row_budget: rows to decode at once.
    """

    checkpoint: Path
    fingerprint: str
    precision: str
    beam_size: int
    length_penalty: float
    limits: Limits
    row_budget: int


@dataclass(frozen=True)
class LineFailure:
    """A line that could not be translated, and has an empty translation.

    Attributes:
        index: its place among the lines, from 0.
        reason: what is wrong with it.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class TranslatedLines:
    """What became of some lines.

    Attributes:
        translations: of each line, in order, without line ends.
        failures: of those that could not be translated.
        tokens: that were written, ``<eos>`` included.
    """

    translations: list[str]
    failures: list[LineFailure]
    tokens: int


class LineTranslator:
    """A loaded translation model on one thread of a processor.

    Args:
        options: how to translate.

    Raises:
        StartupError: the checkpoint is damaged, or is not the one that was meant.
    """

    def __init__(self, options: CorpusOptions) -> None:
        # Each worker has one core.
        torch.set_num_threads(1)
        device = torch.device("cpu")
        with damage_as(StartupError):
            info = read_checkpoint(options.checkpoint)
            model = load_model(info, device)
        if info.fingerprint != options.fingerprint:
            raise StartupError(f"checkpoint {info.name} here is not the one that was started with")
        if not isinstance(model, Seq2Seq):
            raise StartupError(f"{info.name} is not a translation model")
        self._options = options
        self._model = set_precision(model, resolve_precision(options.precision, device))
        self._source, self._target = info.tokenizers["source"], info.tokenizers["target"]

    def translate(self, lines: Sequence[bytes | None]) -> TranslatedLines:
        """Translate lines; where there is none, there is no translation either.

        Args:
            lines: which should be UTF-8, without their ends.
        """
        translations = [""] * len(lines)
        failures: list[LineFailure] = []
        prompts: dict[int, list[int]] = {}
        for index, line in enumerate(lines):
            try:
                prompt = [] if line is None else self._prompt(line)
            except (UnicodeDecodeError, InvalidRequestError) as error:
                failures.append(LineFailure(index, _reason(error)))
                continue
            if prompt:
                prompts[index] = prompt
        tokens_written = 0
        for index, outcome in self._decode(prompts):
            if isinstance(outcome, Hypothesis):
                translations[index] = one_line(self._target.decode(outcome.token_ids))
                tokens_written += len(outcome.tokens)
            else:
                failures.append(LineFailure(index, outcome))
        failures.sort(key=lambda failure: failure.index)
        return TranslatedLines(translations, failures, tokens_written)

    def _prompt(self, line: bytes) -> list[int]:
        text = line.decode("utf-8")
        self._options.limits.check_texts("text", [text])
        return source_prompt(self._source, text)

    def _decode(self, prompts: dict[int, list[int]]) -> list[tuple[int, Hypothesis | str]]:
        """The best output for each prompt, or why there is none."""
        indices = list(prompts)
        params = [self._params(len(prompt)) for prompt in prompts.values()]
        outcomes: list[tuple[int, Hypothesis | str]] = []
        try:
            for place, outputs in decode_corpus(
                self._model,
                list(prompts.values()),
                params,
                max_rows=self._options.row_budget,
            ):
                outcomes.append((indices[place], outputs[0]))
        except ArithmeticError as error:
            if len(prompts) == 1:
                return [(indices[0], str(error))]
            # One of them spoils the batch: those that did not end are tried one by one.
            ended = {index for index, _ in outcomes}
            for index in indices:
                if index not in ended:
                    outcomes += self._decode({index: prompts[index]})
        return outcomes

    def _params(self, prompt_length: int) -> DecodingParams:
        limit = self._options.limits.max_new_tokens
        return DecodingParams(
            max_new_tokens=min(limit, default_translation_length(prompt_length)),
            beam_size=self._options.beam_size,
            length_penalty=self._options.length_penalty,
        )


def _reason(error: UnicodeDecodeError | InvalidRequestError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason}"
    return str(error)
