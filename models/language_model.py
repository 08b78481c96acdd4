"""Recurrent language models: the probability of each next token given all before it.

*Dive into Deep Learning*, sections 9.4 to 10.4. Shape legend: ``N`` rows, ``T`` positions,
``V`` vocabulary size. Token ids are int64.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from models.config import LanguageModelConfig
from models.dropout import dropout
from models.encoder_decoder import Reading, StepOutput, longest_first
from models.packing import PackedLayout
from models.placement import on_device, send
from models.recurrent import RecurrentStack, StackState
from models.several_steps import WholeStep
from models.state import DecodeState
from models.tokenizers import BOS_ID


class NotGenerativeError(ValueError):
    """The model cannot generate text."""


class LanguageModel(nn.Module):
    """A stack of cells over token embeddings (or one-hot vectors) with a linear output layer.

    Args:
        config: its hyperparameters.

    Raises:
        ValueError: the configuration asks torch for a cell that it does not have.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.continues_prompt = True
        self.vocabulary_size = self.prompt_vocabulary_size = config.vocabulary_size
        self.embedding = (
            nn.Embedding(config.vocabulary_size, config.embedding_size)
            if config.embedding_size
            else None
        )
        self.stack = RecurrentStack(
            config.cell,
            config.embedding_size or config.vocabulary_size,
            config.hidden_size,
            config.num_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
            implementation=config.implementation,
        )
        self.output = nn.Linear(self.stack.output_size, config.vocabulary_size)
        # Takes the place of the modules in steps: see models.whole_step.
        self.whole_step: WholeStep | None = None
        if config.initializer == "normal":
            for name, parameter in self.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, std=0.01)
        if config.gate_bias:
            for cell in self.stack.trained_cells():
                cell.set_gate_bias(config.gate_bias)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[...]`` to the stack's inputs ``[..., I]``."""
        if self.embedding is None:
            one_hot = functional.one_hot(tokens, self.vocabulary_size)
            return one_hot.to(self.output.bias.dtype)
        embedded: Tensor = self.embedding(tokens)
        return dropout(embedded, self.config.dropout, self.training)

    def forward(self, inputs: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """Whole sequences.

        Args:
            inputs: ``[N, T]``, no row padded.
            state: the state before the first position, zeros if None.

        Returns:
            Logits ``[N, T, V]`` of the next token at each position, and the state at the end.
        """
        outputs, state = self.stack(self.embed(inputs), state)
        outputs = dropout(outputs, self.config.dropout, self.training)
        return self.output(outputs), state

    def initial_state(self, rows: int) -> DecodeState:
        """Zeros: see :class:`ResumableModel`."""
        return DecodeState(self.stack.initial_state(rows))

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        """Read prompts, all but the last token of each: see :class:`StepModel`.

        Raises:
            NotGenerativeError: the model is bidirectional.
            ValueError: a prompt is empty (it holds ``<bos>`` at least).
        """
        return self._begin(prompts, None)

    def resume(self, prompts: Sequence[Sequence[int]], state: DecodeState) -> Reading:
        """Read prompts behind what states have seen: see :class:`ResumableModel`.

        Raises:
            NotGenerativeError: the model is bidirectional.
            ValueError: a prompt is empty.
        """
        return self._begin(prompts, state)

    def _begin(self, prompts: Sequence[Sequence[int]], start: DecodeState | None) -> Reading:
        if self.config.bidirectional:
            raise NotGenerativeError(
                "a bidirectional language model cannot generate: its backward direction reads "
                "the text from its end, and at generation time the future is not there to read"
            )
        if not all(prompts):
            raise ValueError("a prompt needs at least one token: begin it with <bos>")
        if not self.config.reads_bos:
            prompts = [prompt[1:] if prompt[0] == BOS_ID else prompt for prompt in prompts]
            # An empty text has nothing else to begin with: its <bos> has an input of zeros.
            prompts = [prompt or [BOS_ID] for prompt in prompts]
        return self._read(prompts, start)

    def _read(self, prompts: Sequence[Sequence[int]], start: DecodeState | None) -> Reading:
        order, places = longest_first(prompts)
        layout = PackedLayout([len(prompts[index]) - 1 for index in order])
        device = self.output.bias.device
        tokens = send(layout.pack([prompts[index] for index in order]), device)
        before = None if start is None else start.select(on_device(order, device)).layers
        _, layers = yield from self.stack.read(self.embed(tokens), layout, before)
        state = DecodeState(layers).select(on_device(places, device))
        return on_device([prompt[-1] for prompt in prompts], device), state

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        """Feed one token a row, ``[N]``: see :class:`StepModel`."""
        if self.whole_step is not None:
            return self.whole_step(tokens, state)
        hidden, layers = self.stack.step(self.embed(tokens), state.layers)
        return StepOutput(self.output(hidden).float(), DecodeState(layers=layers))
