import pytest
from pydantic import TypeAdapter, ValidationError

from models.config import LanguageModelConfig, ModelConfig, Seq2SeqConfig

PARSER: TypeAdapter[LanguageModelConfig | Seq2SeqConfig] = TypeAdapter(ModelConfig)


def test_kind_chooses_the_configuration() -> None:
    data = {"kind": "language_model", "vocabulary_size": 30, "hidden_size": 8}
    assert isinstance(PARSER.validate_python(data), LanguageModelConfig)
    with pytest.raises(ValidationError, match="kind"):
        PARSER.validate_python({**data, "kind": "transformer"})


def test_unknown_and_impossible_values_are_refused() -> None:
    for bad in ({"heads": 8}, {"hidden_size": 0}, {"dropout": 1.0}, {"cell": "sru"}):
        data = {"kind": "language_model", "vocabulary_size": 30, "hidden_size": 8, **bad}
        with pytest.raises(ValidationError, match=next(iter(bad))):
            PARSER.validate_python(data)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tie_embeddings": True, "target_vocabulary_size": 31}, "30 and 31 tokens"),
        ({"hidden_size": 7}, "must be even, not 7"),
        ({"decoder": "parallel_attention"}, "decoder_layers of 2"),
        ({"initial_state": "top"}, "need the decoder input_feeding"),
        ({"encoder_hidden_size": 6}, "need the decoder input_feeding"),
        ({"decoder": "input_feeding", "encoder_hidden_size": 7}, "must be even, not 7"),
        ({"decoder": "input_feeding", "initial_state": "encoder", "decoder_layers": 2},
         "of the same sizes"),
        ({"decoder": "input_feeding", "initial_state": "top", "encoder_hidden_size": 6},
         "hidden_size or twice that"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(values: dict[str, object], message: str) -> None:
    data = {
        "kind": "seq2seq",
        "source_vocabulary_size": 30,
        "target_vocabulary_size": 30,
        "embedding_size": 4,
        "hidden_size": 8,
        **values,
    }
    with pytest.raises(ValidationError, match=message):
        Seq2SeqConfig.model_validate(data)


def test_configurations_are_frozen() -> None:
    config = LanguageModelConfig(vocabulary_size=30, hidden_size=8)
    with pytest.raises(ValidationError, match="frozen"):
        config.hidden_size = 9  # type: ignore[misc]  # that is what is tested
