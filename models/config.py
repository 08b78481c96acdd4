"""Frozen, validated hyperparameters of each kind of model.

A configuration says everything that is needed to build a model of the right shape;
it is stored as ``config.json`` in every checkpoint folder.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CellName = Literal["rnn", "gru", "gru_textbook", "lstm"]
"""``gru`` is the form that ``torch.nn.GRU`` computes, ``gru_textbook`` the published
first form: see :mod:`models.cells`."""

Implementation = Literal["equations", "torch"]
"""Who computes a whole sequence: our loop over the gate equations, or torch's fused
layer with the same weights. A single step is always computed by the equations."""


Size = Annotated[int, Field(ge=1, le=65_536)]
Depth = Annotated[int, Field(ge=1, le=64)]
VocabularySize = Annotated[int, Field(ge=5, le=10_000_000)]
"""Far above any recurrent model, and low enough that a forged file cannot ask for the world."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LanguageModelConfig(_Frozen):
    """Hyperparameters of a recurrent language model.

    Raises:
        pydantic.ValidationError: a value is out of range or a field is unknown.
    """

    kind: Literal["language_model"] = "language_model"
    vocabulary_size: VocabularySize
    cell: CellName = "gru"
    implementation: Implementation = "torch"
    embedding_size: Size | None = None
    """Size of the learned token embedding; None feeds one-hot vectors, as the textbook does."""
    hidden_size: Size
    num_layers: Depth = 1
    bidirectional: bool = False
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    gate_bias: float = Field(default=0.0, ge=-100.0, le=100.0)
    """Initial bias of the gate that keeps the state: forget (LSTM) or update (GRU)."""
    initializer: Literal["torch", "normal"] = "torch"
    """``torch``: uniform in +-1/sqrt(hidden); ``normal``: N(0, 0.01^2), as the textbook does."""
    reads_bos: bool = True
    """Whether a text begins with ``<bos>``. An imported model that never saw it does without: the
    first token of a text then meets a state of zeros."""


class Seq2SeqConfig(_Frozen):
    """Hyperparameters of an encoder-decoder translation model.

    ``decoder`` names how the source reaches the decoder:

    * ``context``: the encoder's final state starts the decoder and its last layer is
      joined to every decoder input (Sutskever et al. 2014, Cho et al. 2014).
    * ``attention``: the previous decoder state queries the source, and the context
      vector is joined to the next input (Bahdanau et al. 2015).
    * ``parallel_attention``: the first decoder layer's output queries the source, and the
      context vector is joined to the input of the layers above it. Nothing flows back from
      the attention to the first layer, so training attends from all positions at once.
    * ``input_feeding``: the top layer's output queries the source, and the attentional vector
      that is made of both is joined to the next input (Luong et al. 2015).

    Raises:
        pydantic.ValidationError: a value is out of range, a field is unknown, or two fields
            contradict each other.
    """

    kind: Literal["seq2seq"] = "seq2seq"
    source_vocabulary_size: VocabularySize
    target_vocabulary_size: VocabularySize
    cell: CellName = "gru"
    implementation: Implementation = "torch"
    embedding_size: Size
    hidden_size: Size
    encoder_layers: Depth = 1
    decoder_layers: Depth = 1
    bidirectional_encoder: bool = True
    decoder: Literal["context", "attention", "parallel_attention", "input_feeding"] = "attention"
    attention: Literal["additive", "dot"] = "additive"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    tie_embeddings: bool = False
    """One matrix for source and target embeddings and the output layer."""
    encoder_hidden_size: Size | None = None
    """Size of an encoder output, of both directions together; None is hidden_size."""
    initial_state: Literal["bridge", "encoder", "joint_bridge", "top_bridge", "top"] = "bridge"
    """How the decoder begins: see :mod:`models.bridge`. ``encoder`` hands the state over."""
    attentional_tanh: bool = True
    """Whether the attentional vector of input feeding goes through tanh."""
    reads_source_eos: bool = True
    """Whether the encoder reads the ``<eos>`` behind a source: some imported models never did."""

    @property
    def encoder_size(self) -> int:
        """Size of an encoder output."""
        return self.encoder_hidden_size or self.hidden_size

    @model_validator(mode="after")
    def _fits_together(self) -> "Seq2SeqConfig":
        if self.tie_embeddings and self.source_vocabulary_size != self.target_vocabulary_size:
            raise ValueError(
                "tie_embeddings needs one vocabulary for both languages, not "
                f"{self.source_vocabulary_size} and {self.target_vocabulary_size} tokens"
            )
        if self.bidirectional_encoder and self.encoder_size % 2:
            raise ValueError(
                "a bidirectional encoder gives each direction half of hidden_size, "
                f"which must be even, not {self.encoder_size}"
            )
        if self.decoder == "parallel_attention" and self.decoder_layers < 2:
            raise ValueError("parallel_attention needs decoder_layers of 2 or more")
        self._check_input_feeding()
        return self

    def _check_input_feeding(self) -> None:
        size = self.encoder_size
        own = size != self.hidden_size or self.initial_state != "bridge"
        if self.decoder != "input_feeding" and (own or not self.attentional_tanh):
            raise ValueError(
                "encoder_hidden_size, initial_state and attentional_tanh need the decoder "
                "input_feeding"
            )
        same = (self.encoder_layers, size) == (self.decoder_layers, self.hidden_size)
        if self.initial_state == "encoder" and not same:
            raise ValueError(
                "initial_state of encoder needs an encoder and a decoder of the same sizes"
            )
        if self.initial_state == "top" and size not in (self.hidden_size, 2 * self.hidden_size):
            raise ValueError("initial_state of top needs an encoder of hidden_size or twice that")


ModelConfig = Annotated[LanguageModelConfig | Seq2SeqConfig, Field(discriminator="kind")]
"""Either configuration, told apart by its ``kind``."""
