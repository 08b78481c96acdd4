"""Sequence-to-sequence translation models.

Shape legend: ``N`` rows, ``S`` source positions, ``T`` target positions, ``D`` embedding size,
``H`` hidden size, ``E`` size of an encoder output (H, but where input feeding says otherwise),
``V`` vocabulary size. Token ids are int64.
"""

from collections.abc import Callable, Generator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import ATTENTIONS, Attention
from models.bridge import make_bridge
from models.config import Seq2SeqConfig
from models.dropout import dropout
from models.encoder_decoder import (
    Decoder,
    EncodedSource,
    Encoder,
    EncoderDecoder,
    Reading,
    StepOutput,
    longest_first,
)
from models.packing import PackedLayout, sequence_mask
from models.placement import on_device, send
from models.recurrent import RecurrentStack
from models.several_steps import WholeStep, whole_step_of
from models.state import AttentionMemory, DecodeState
from models.tokenizers import BOS_ID, EOS_ID


class Seq2SeqEncoder(Encoder):
    """Embeddings and a recurrent stack, bidirectional by default: each direction has E / 2."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        directions = 2 if config.bidirectional_encoder else 1
        self.dropout = config.dropout
        self.embedding = nn.Embedding(config.source_vocabulary_size, config.embedding_size)
        self.stack = RecurrentStack(
            config.cell,
            config.embedding_size,
            config.encoder_size // directions,
            config.encoder_layers,
            bidirectional=config.bidirectional_encoder,
            dropout=config.dropout,
            implementation=config.implementation,
        )

    def forward(self, sources: Tensor, lengths: Tensor) -> EncodedSource:
        """See :class:`Encoder`."""
        embedded = dropout(self.embedding(sources), self.dropout, self.training)
        outputs, final_state = self.stack(embedded, None, lengths)
        outputs = dropout(outputs, self.dropout, self.training)
        return EncodedSource(outputs, final_state, sequence_mask(lengths, sources.shape[1]))

    def read(self, sources: Sequence[Sequence[int]]) -> Generator[None, None, EncodedSource]:
        """See :class:`Encoder`."""
        layout = PackedLayout([len(source) for source in sources])
        device = self.embedding.weight.device
        tokens = send(layout.pack(sources), device)
        packed, final_state = yield from self.stack.read(self.embedding(tokens), layout)
        outputs = layout.unpack(packed)
        lengths = on_device(layout.lengths, device)
        return EncodedSource(outputs, final_state, sequence_mask(lengths, outputs.shape[1]))


class Seq2SeqDecoder(Decoder):
    """What all decoders share: embedding, bridge, output layer and their step.

    Args:
        config: hyperparameters.
        num_states: tensors in the state of one cell.
        feature_size: F.
    """

    def __init__(self, config: Seq2SeqConfig, num_states: int, feature_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.target_vocabulary_size, config.embedding_size)
        self.bridge = make_bridge(config, num_states)
        self.bottleneck = (
            nn.Linear(feature_size, config.embedding_size) if config.tie_embeddings else None
        )
        size = config.embedding_size if config.tie_embeddings else feature_size
        self.output_layer = nn.Linear(size, config.target_vocabulary_size)

    def start(self, encoded: EncodedSource) -> DecodeState:
        """See :class:`Decoder`."""
        final = encoded.final_state
        return DecodeState(layers=self.bridge(final) if self.bridge else final)

    def embed(self, tokens: Tensor) -> Tensor:
        """Target tokens ``[...]`` to embeddings ``[..., D]``."""
        return dropout(self.embedding(tokens), self.config.dropout, self.training)

    def output(self, features: Tensor) -> Tensor:
        """See :class:`Decoder`."""
        logits: Tensor = self.output_layer(self.narrow(features))
        return logits

    def narrow(self, features: Tensor) -> Tensor:
        """Features ``[..., F]`` to what the output layer reads."""
        features = dropout(features, self.config.dropout, self.training)
        return features if self.bottleneck is None else cast(Tensor, self.bottleneck(features))


def _stack(config: Seq2SeqConfig, input_size: int, num_layers: int) -> RecurrentStack:
    return RecurrentStack(
        config.cell,
        input_size,
        config.hidden_size,
        num_layers,
        dropout=config.dropout,
        implementation=config.implementation,
    )


class ContextDecoder(Seq2SeqDecoder):
    """The textbook form: the encoder's last hidden state is joined to every decoder input.

    *Dive into Deep Learning*, section 10.7; Cho et al. 2014.
    """

    def __init__(self, config: Seq2SeqConfig, num_states: int) -> None:
        super().__init__(config, num_states, config.hidden_size)
        size = config.embedding_size + config.hidden_size
        self.stack = _stack(config, size, config.decoder_layers)

    def start(self, encoded: EncodedSource) -> DecodeState:
        """See :class:`Decoder`."""
        state = super().start(encoded)
        return DecodeState(layers=state.layers, context=encoded.final_state[-1][0])

    def features(self, inputs: Tensor, state: DecodeState) -> Tensor:
        """See :class:`Decoder`."""
        context = cast(Tensor, state.context)[:, None].expand(-1, inputs.shape[1], -1)
        outputs, _ = self.stack(torch.cat([self.embed(inputs), context], -1), state.layers)
        return cast(Tensor, outputs)

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :class:`Decoder`."""
        inputs = torch.cat([self.embed(tokens), cast(Tensor, state.context)], -1)
        hidden, layers = self.stack.step(inputs, state.layers)
        return StepOutput(self.output(hidden).float(), DecodeState(layers, context=state.context))


class AttentionDecoder(Seq2SeqDecoder):
    """The previous top hidden state queries the source; the context is joined to the input.

    Bahdanau et al. 2015; *Dive into Deep Learning*, section 11.4. Each position needs the state
    before it, so teacher forcing runs position by position too.
    """

    def __init__(self, config: Seq2SeqConfig, num_states: int) -> None:
        super().__init__(config, num_states, config.hidden_size)
        size = config.hidden_size
        self.attention: Attention = ATTENTIONS[config.attention](size, size, size)
        self.stack = _stack(config, config.embedding_size + size, config.decoder_layers)

    def start(self, encoded: EncodedSource) -> DecodeState:
        """See :class:`Decoder`."""
        memory = self.attention.memory(encoded.outputs, encoded.mask)
        return DecodeState(layers=super().start(encoded).layers, memory=memory)

    def _advance(self, embedded: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState, Tensor]:
        memory = cast(AttentionMemory, state.memory)
        context, weights = self.attention.attend(state.layers[-1][0], memory)
        inputs = torch.cat([embedded, context], -1)
        hidden, layers = self.stack.step(inputs, state.layers)
        return hidden, DecodeState(layers, memory=memory), weights

    def features(self, inputs: Tensor, state: DecodeState) -> Tensor:
        """See :class:`Decoder`."""
        features = []
        for embedded in self.embed(inputs).unbind(1):
            hidden, state, _ = self._advance(embedded, state)
            features.append(hidden)
        return torch.stack(features, dim=1)

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :class:`Decoder`."""
        hidden, state, weights = self._advance(self.embed(tokens), state)
        return StepOutput(self.output(hidden).float(), state, weights)


class ParallelAttentionDecoder(Seq2SeqDecoder):
    """The bottom layer's output queries the source; the layers above read it with the context.

    The arrangement of GNMT (Wu et al. 2016, section 3) without its residual connections. Since
    nothing flows back into the bottom layer, teacher forcing attends from all positions at once.
    The features join the top hidden state and the context: Luong et al. 2015, equation 5.
    """

    def __init__(self, config: Seq2SeqConfig, num_states: int) -> None:
        size = config.hidden_size
        super().__init__(config, num_states, size)
        self.attention: Attention = ATTENTIONS[config.attention](size, size, size)
        self.bottom = _stack(config, config.embedding_size, 1)
        self.top = _stack(config, 2 * size, config.decoder_layers - 1)
        self.combine = nn.Linear(2 * size, size)
        self.tanh: nn.Module = nn.Tanh()
        # Takes the place of the modules in steps: see models.whole_step.
        self.whole_step: WholeStep | None = None

    def start(self, encoded: EncodedSource) -> DecodeState:
        """See :class:`Decoder`."""
        memory = self.attention.memory(encoded.outputs, encoded.mask)
        return DecodeState(layers=super().start(encoded).layers, memory=memory)

    def features(self, inputs: Tensor, state: DecodeState) -> Tensor:
        """See :class:`Decoder`."""
        hidden, _ = self.bottom(self.embed(inputs), state.layers[:1])
        context, _ = self.attention(hidden, cast(AttentionMemory, state.memory))
        joined = dropout(torch.cat([hidden, context], -1), self.config.dropout, self.training)
        outputs, _ = self.top(joined, state.layers[1:])
        return cast(Tensor, self.tanh(self.combine(torch.cat([outputs, context], -1))))

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :class:`Decoder`."""
        if self.whole_step is not None:
            return self.whole_step(tokens, state)
        memory = cast(AttentionMemory, state.memory)
        hidden, bottom = self.bottom.step(self.embed(tokens), state.layers[:1])
        context, weights = self.attention.attend(hidden, memory)
        outputs, top = self.top.step(torch.cat([hidden, context], -1), state.layers[1:])
        features = self.tanh(self.combine(torch.cat([outputs, context], -1)))
        after = DecodeState((*bottom, *top), memory=memory)
        return StepOutput(self.output(features).float(), after, weights)


class InputFeedingDecoder(Seq2SeqDecoder):
    """The top layer's output queries the source; what comes of both is joined to the next input.

    Luong et al. 2015, sections 3 and 3.3, equation 5: the attentional vector
    a_t = tanh(W [h_t; c_t] + b) makes the features, and the next input is [embedding; a_t]. It is
    a state like a layer's, and stands behind theirs in ``DecodeState.layers``; zeros at first.
    """

    def __init__(self, config: Seq2SeqConfig, num_states: int) -> None:
        size, value_size = config.hidden_size, config.encoder_size
        super().__init__(config, num_states, size)
        self.attention: Attention = ATTENTIONS[config.attention](
            size, value_size, size, query_bias=config.attention == "additive"
        )
        self.stack = _stack(config, config.embedding_size + size, config.decoder_layers)
        self.combine = nn.Linear(size + value_size, size)
        self.tanh: nn.Module = nn.Tanh() if config.attentional_tanh else nn.Identity()

    def start(self, encoded: EncodedSource) -> DecodeState:
        """See :class:`Decoder`."""
        layers = super().start(encoded).layers
        fed = layers[0][0].new_zeros(len(encoded.mask), self.config.hidden_size)
        memory = self.attention.memory(encoded.outputs, encoded.mask)
        return DecodeState(layers=(*layers, (fed,)), memory=memory)

    def _advance(self, embedded: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState, Tensor]:
        memory = cast(AttentionMemory, state.memory)
        *before, (fed,) = state.layers
        hidden, layers = self.stack.step(torch.cat([embedded, fed], -1), tuple(before))
        context, weights = self.attention.attend(hidden, memory)
        vector = self.tanh(self.combine(torch.cat([hidden, context], -1)))
        return vector, DecodeState((*layers, (vector,)), memory=memory), weights

    def features(self, inputs: Tensor, state: DecodeState) -> Tensor:
        """See :class:`Decoder`."""
        features = []
        for embedded in self.embed(inputs).unbind(1):
            vector, state, _ = self._advance(embedded, state)
            features.append(vector)
        return torch.stack(features, dim=1)

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """See :class:`Decoder`."""
        vector, state, weights = self._advance(self.embed(tokens), state)
        return StepOutput(self.output(vector).float(), state, weights)


DECODERS: dict[str, Callable[[Seq2SeqConfig, int], Seq2SeqDecoder]] = {
    "context": ContextDecoder,
    "attention": AttentionDecoder,
    "parallel_attention": ParallelAttentionDecoder,
    "input_feeding": InputFeedingDecoder,
}


class Seq2Seq(EncoderDecoder):
    """An encoder and one of the decoders, as the configuration says.

    Args:
        config: its hyperparameters.

    Raises:
        ValueError: the configuration asks torch for a cell that it does not have.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        encoder = Seq2SeqEncoder(config)
        num_states = encoder.stack.cells()[0].num_states
        decoder = DECODERS[config.decoder](config, num_states)
        super().__init__(encoder, decoder)
        self.config = config
        self.continues_prompt = False
        self.vocabulary_size = config.target_vocabulary_size
        self.prompt_vocabulary_size = config.source_vocabulary_size
        if config.tie_embeddings:
            # Output rows of unit scale want small embeddings: N(0, D^-1/2) suits both uses.
            nn.init.normal_(encoder.embedding.weight, std=config.embedding_size**-0.5)
            decoder.embedding.weight = encoder.embedding.weight
            decoder.output_layer.weight = encoder.embedding.weight

    @property
    def whole_step(self) -> WholeStep | None:
        """See :func:`models.several_steps.whole_step_of`."""
        return whole_step_of(self.decoder)

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        """Encode source sentences (token ids with ``<eos>`` behind): see :class:`StepModel`.

        Raises:
            ValueError: a source is empty.
        """
        if not all(prompts):
            raise ValueError("a source needs at least one token: end it with <eos>")
        return self._read(prompts)

    def read_part(self, source: Sequence[int]) -> Sequence[int]:
        """What the encoder reads of a source: not the ``<eos>`` behind it, if so configured."""
        if self.config.reads_source_eos or source[-1] != EOS_ID:
            return source
        # A source of nothing else has to be read all the same.
        return source[:-1] or source

    def _read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        order, places = longest_first(prompts)
        sources = [self.read_part(prompts[index]) for index in order]
        encoded = yield from self.encoder.read(sources)
        if not self.config.reads_source_eos:
            # Its place is there, as padding: sources are as long as they were given.
            places_of_eos = max(map(len, prompts)) - encoded.mask.shape[1]
            outputs = functional.pad(encoded.outputs, (0, 0, 0, places_of_eos))
            mask = functional.pad(encoded.mask, (0, places_of_eos))
            encoded = EncodedSource(outputs, encoded.final_state, mask)
        device = encoded.outputs.device
        state = self.decoder.start(encoded).select(on_device(places, device))
        return torch.full((len(prompts),), BOS_ID, device=device), state

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """Feed one target token a row, ``[N]``: see :class:`StepModel`."""
        output: StepOutput = self.decoder.step(tokens, state)
        return output
