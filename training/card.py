"""The model card, written by the run itself with the figures that it measured."""

from collections.abc import Mapping

from models.checkpoint_model import Model
from models.checkpoint_schema import InitialCheckpoint, TrainingRecord
from models.tokenizers import Tokenizer
from training.preset import Card

CARD = """# {card.title}

{origin}
`training.json` holds the whole preset and the versions of the libraries.

- Parameters: {millions:.2f} M, stored as float16
- Vocabulary: {vocabulary}

## Data and licence

{data}

Licence of the model: {record.licence}{attribution}

## Quality

| figure | value |
| --- | --- |
{figures}

{record.metrics_note}

## Limits

{card.limits}

## Hyperparameters

| name | value |
| --- | --- |
{hyperparameters}
"""


def write_card(
    card: Card,
    record: TrainingRecord,
    model: Model,
    tokenizers: Mapping[str, Tokenizer],
) -> str:
    """The card in Markdown."""
    attribution = f"\n\nAttribution: {record.attribution}" if record.attribution else ""
    return CARD.format(
        card=card,
        record=record,
        origin=_origin(record),
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        vocabulary=", ".join(
            f"{role}: {tokenizer.kind}, {tokenizer.vocabulary_size} tokens"
            for role, tokenizer in tokenizers.items()
        ),
        data="\n".join(
            f"- {source.name}, from {source.origin}, SHA-256 of the text `{source.sha256}`"
            for source in record.data
        ),
        attribution=attribution,
        figures=_rows(
            {name.replace("_", " "): f"{value:g}" for name, value in record.metrics.items()}
        ),
        hyperparameters=_rows(model.config.model_dump()),
    )


def _origin(record: TrainingRecord) -> str:
    date = record.created[:10]
    if record.averaged:
        names = " and\n".join(map(_name, record.averaged))
        return f"Averaged by Gatehouse on {date} from the weights of\n{names}."
    return (
        f"Trained by Gatehouse with the preset `{record.name}` on {date}: seed {record.seed},\n"
        f"{record.steps} steps"
        + (f" (the weights are those of step {record.best_step})" if record.best_step else "")
        + (f", beginning with the weights of\n{_name(record.initial)}" if record.initial else "")
        + "."
    )


def _name(other: InitialCheckpoint) -> str:
    return (
        f"a checkpoint `{other.name}` of {other.steps} steps "
        f"(fingerprint `{other.fingerprint[:16]}...`)"
    )


def _rows(cells: Mapping[str, object]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in cells.items())
