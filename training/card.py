"""The model card, written by the run itself with the figures that it measured."""

from collections.abc import Mapping

from models.checkpoint import Model, TrainingRecord
from models.tokenizers import Tokenizer
from training.preset import Card


def write_card(
    card: Card,
    record: TrainingRecord,
    model: Model,
    tokenizers: Mapping[str, Tokenizer],
) -> str:
    """The card in Markdown."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    vocabulary = ", ".join(
        f"{role}: {tokenizer.kind}, {tokenizer.vocabulary_size} tokens"
        for role, tokenizer in tokenizers.items()
    )
    hyperparameters = "\n".join(
        f"| {name} | {value} |" for name, value in model.config.model_dump().items()
    )
    figures = "\n".join(
        f"| {name.replace('_', ' ')} | {value:g} |" for name, value in record.metrics.items()
    )
    data = "\n".join(
        f"- {source.name}, from {source.origin}, SHA-256 of the text `{source.sha256}`"
        for source in record.data
    )
    attribution = f"\n\nAttribution: {record.attribution}" if record.attribution else ""
    return f"""# {card.title}

Trained by Gatehouse with the preset `{record.name}` on {record.created[:10]}: seed {record.seed},
{record.steps} steps. `training.json` holds the whole preset and the versions of the libraries.

- Parameters: {parameters / 1e6:.2f} M, stored as float16
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
