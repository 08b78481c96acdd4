"""Sources of all sizes side by side: one tensor, and the same answers."""

from collections.abc import Sequence
from itertools import groupby

import pytest
from torch import Tensor

from models.decoding.params import DecodingParams
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import Reading, StepModel, StepOutput
from models.precision import set_precision
from models.state import DecodeState
from tests.models.decoding.toy_models import make_model


class Watched:
    """A model that notes in how many tensors the sources of each step came."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        self.sizes: list[list[int]] = []

    @property
    def vocabulary_size(self) -> int:
        return self.model.vocabulary_size

    @property
    def prompt_vocabulary_size(self) -> int:
        return self.model.prompt_vocabulary_size

    @property
    def continues_prompt(self) -> bool:
        return self.model.continues_prompt

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        return self.model.read(prompts)

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        sizes, memory = [], state.memory
        while memory is not None:
            sizes.append(memory.mask.shape[1])
            memory = memory.rest
        self.sizes.append(sizes)
        return self.model.step(tokens, state)


def decode(model: StepModel, *, single_lane: bool) -> list[str]:
    """All that is told: short sources, then a long one, which leaves again, beams among them."""
    decoder = BatchedDecoder(model, single_lane=single_lane)
    beam = DecodingParams(8, beam_size=3, num_outputs=3, return_attention=True)
    greedy = DecodingParams(8, return_attention=True)
    told: dict[int, str] = {}
    for step in range(14):
        if step == 0:
            decoder.admit([DecodingTask(0, [5, 2], greedy), DecodingTask(1, [6] * 16, beam)])
        if step == 3:
            decoder.admit([DecodingTask(2, [7] * 100, beam), DecodingTask(3, [8] * 20, greedy)])
        if step == 6:
            decoder.remove([2])
        for key, emissions in decoder.step().emissions.items():
            told[key] = told.get(key, "") + repr(emissions)
    assert decoder.rows == 0
    return [told[key] for key in (0, 1, 3)]


@pytest.mark.parametrize("form", ["additive", "parallel dot"])
def test_one_lane_holds_all_sources_and_changes_no_answer(form: str) -> None:
    model = set_precision(make_model(form, "gru", 29), "int8")
    one, several = Watched(model), Watched(model)
    assert decode(one, single_lane=True) == decode(several, single_lane=False)
    assert all(len(sizes) == 1 for sizes in one.sizes)
    # Who passes padding over has short sources together, and a long one apart.
    assert [sizes for sizes, _ in groupby(several.sizes)] == [[16], [32], [32, 128], [32]]
    # As large as the longest that was there: nobody looks at what is left behind the others.
    assert [sizes for sizes, _ in groupby(one.sizes)] == [[16], [32], [128]]


def test_where_padding_is_computed_sources_of_each_size_stand_apart() -> None:
    model = make_model("parallel dot", "gru", 29)
    one, several = Watched(model), Watched(model)
    decode(several, single_lane=False)
    assert max(len(sizes) for sizes in several.sizes) == 3
    # In one lane they are padded to the longest that is there: it grows, and shrinks again.
    decode(one, single_lane=True)
    assert [sizes for sizes, _ in groupby(one.sizes)] == [[16], [32], [128], [32]]
