"""What only a GPU can show: graphs that are replayed, and a host that does not wait."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from app.engine.graphs import USES_BEFORE_REPLACING, CudaCapture, GraphedModel, GraphKey
from models.decoding.beam import LiveBeams
from models.decoding.choice import RowKinds, RowNeeds, compute_choices
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams
from models.decoding.sampling import suppress_special
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import Reading, StepModel, StepOutput, read_at_once
from models.placement import on_device, send
from models.precision import Precision, set_precision
from models.state import DecodeState
from tests.app.conftest import StartService
from tests.app.engine.graph_cases import CheckedModel, at_once, cell_of, decode, flatten, make_tasks
from tests.models.decoding.toy_models import FORMS, make_model, random_language_model

GPU = torch.device("cuda:0")
TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
PROMPTS = [[5, 6, 7, 2], [8, 2], [9, 4] * 12]
LENGTH = 12


@pytest.fixture(autouse=True)
def _float32_is_exact() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def gpu_model(form: str, precision: Precision, sharpness: float = 4) -> StepModel:
    model = make_model(form, cell_of(form), 29, sharpness=sharpness)
    return set_precision(model.to(GPU), precision)


def graphed(model: StepModel) -> GraphedModel:
    return GraphedModel(model, CudaCapture(GPU))


# ---------------------------------------------------------------- the same answers


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
def test_a_replayed_step_is_that_of_the_model(form: str, precision: Precision) -> None:
    model = gpu_model(form, precision, sharpness=1)
    checked = CheckedModel(model, CudaCapture(GPU), TOLERANCES[precision])
    for seed in range(2):
        decode(checked, make_tasks(form, 9, seed))
    assert checked.steps > len(checked.keys) > 1  # some were replayed without a capture


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_a_replayed_step_is_that_of_the_same_padding_without_a_graph(form: str) -> None:
    model = gpu_model(form, "float32", sharpness=1)
    with_graphs, without = graphed(model), GraphedModel(model, at_once)
    tokens, state = read_at_once(model, PROMPTS)
    for _ in range(3):
        expected = flatten(without.step(tokens, state))
        for one, other in zip(flatten(with_graphs.step(tokens, state)), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        tokens = (tokens + 3) % 29


class Margins:
    """A model that notes by how much the best token of each row wins."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        self.smallest = float("inf")

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
        output = self.model.step(tokens, state)
        first, second = suppress_special(output.logits).topk(2).values.unbind(-1)
        self.smallest = min(self.smallest, float((first - second).min()))
        return output


def greedy_tokens(model: StepModel) -> list[tuple[int, ...]]:
    found = dict(decode_corpus(model, PROMPTS, DecodingParams(LENGTH)))
    return [found[index][0].token_ids for index in range(len(PROMPTS))]


@pytest.mark.parametrize("form", FORMS)
def test_rounding_cannot_change_the_tokens_that_the_gpu_is_asked_for(form: str) -> None:
    margins = Margins(make_model(form, cell_of(form), 29))
    tokens = greedy_tokens(margins)
    assert max(map(len, tokens)) == LENGTH
    assert margins.smallest > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_greedy_tokens_are_the_processors(form: str) -> None:
    expected = greedy_tokens(make_model(form, cell_of(form), 29))
    assert greedy_tokens(graphed(gpu_model(form, "float32"))) == expected


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
def test_every_precision_is_near_to_the_processors_float32(form: str, precision: Precision) -> None:
    plain = make_model(form, cell_of(form), 29, sharpness=1)
    expected = plain.step(*read_at_once(plain, PROMPTS)).logits
    model = graphed(gpu_model(form, precision, sharpness=1))
    logits = model.step(*read_at_once(model, PROMPTS)).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.cpu(), expected, atol=TOLERANCES[precision], rtol=0)


# ---------------------------------------------------------------- graphs


@pytest.mark.gpu
def test_a_graph_that_made_room_for_another_is_captured_again() -> None:
    plain = random_language_model()
    model = GraphedModel(random_language_model().to(GPU), CudaCapture(GPU), max_graphs=1)
    for rows in (1, 2, 1):
        prompts = [[5 + row] for row in range(rows)]
        for _ in range(USES_BEFORE_REPLACING):
            logits = model.step(*read_at_once(model, prompts)).logits
        assert model.keys == [GraphKey(rows)]
        expected = plain.step(*read_at_once(plain, prompts)).logits
        torch.testing.assert_close(logits.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.gpu
@torch.inference_mode()
def test_models_that_take_turns_share_the_memory_of_graphs() -> None:
    capture = CudaCapture(GPU)
    models = [GraphedModel(gpu_model(form, "float32"), capture) for form in ("embedded", "dot")]
    plain = [make_model(form, cell_of(form), 29) for form in ("embedded", "dot")]
    for _ in range(3):
        for model, other in zip(models, plain, strict=True):
            logits = model.step(*read_at_once(model, PROMPTS)).logits.cpu()
            expected = other.step(*read_at_once(other, PROMPTS)).logits
            torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


# ---------------------------------------------------------------- nobody waits


@pytest.mark.gpu
def test_lists_arrive_whole_however_many_are_on_their_way() -> None:
    lists = [list(range(first, first + 64)) for first in range(3000)]
    sent = [on_device(values, GPU) for values in lists]
    assert torch.stack(sent).tolist() == lists
    tensor = torch.randn(100, 7)
    assert torch.equal(send(tensor, GPU).cpu(), tensor)


SPECIAL = (
    DecodingParams(5, temperature=0.8),
    DecodingParams(5, temperature=0.8, top_p=0.9, top_k=20),
    DecodingParams(5, temperature=0.8, top_p=0.9, repetition_penalty=1.3),
)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_neither_a_step_nor_its_choices_make_the_host_wait(form: str) -> None:
    model = graphed(gpu_model(form, "bfloat16"))
    tokens, state = read_at_once(model, [[5, 2]] * 6)
    needs = {row: RowNeeds(params, [0.5], [4, 5]) for row, params in enumerate(SPECIAL)}
    kinds = RowKinds(needs, LiveBeams([3, 4], [-1.0, -2.0], [2], [4]), [0])
    for mode in ("default", "error"):  # the first captures, which may wait
        torch.cuda.set_sync_debug_mode(mode)
        try:
            output = model.step(tokens, state)
            state = output.state.select(on_device([5, 4, 3, 2, 1, 0], GPU))
            compute_choices(output.logits, output.attention, kinds)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def count_copies_to_host(decoder: BatchedDecoder, steps: int) -> int:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            assert decoder.step().rows
        torch.cuda.synchronize()
    return sum("Memcpy DtoH" in event.name for event in profiler.events())


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the profiler's own
@pytest.mark.parametrize("form", FORMS)
def test_one_copy_to_the_host_a_step(form: str) -> None:
    decoder = BatchedDecoder(graphed(gpu_model(form, "bfloat16")), single_lane=True)
    sampled = [replace(each, max_new_tokens=50, num_outputs=8) for each in SPECIAL]
    beam = DecodingParams(50, beam_size=4, return_attention=True)
    tasks = [DecodingTask(key, [5 + key, 2], each) for key, each in enumerate([*sampled, beam])]
    decoder.admit(tasks)
    for _ in range(5):
        decoder.step()
    copies = [count_copies_to_host(decoder, steps) for steps in (2, 5)]
    assert copies == [2, 5]


# ---------------------------------------------------------------- the whole service


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("engine", ["inline", "process"])
def test_the_service_answers_on_a_gpu(
    start_service: StartService, engine: str, precision: str
) -> None:
    client = start_service(device="cuda", engine=engine, precision=precision)
    body = {"prompt": ["the ", "a"], "seed": 1, "temperature": 0.8, "top_p": 0.9, "n": 2}
    answers = [client.post("/generate", json=body).json()["outputs"] for _ in range(2)]
    assert len(answers[0]) == 4
    assert [output["text"] for output in answers[0]] == [output["text"] for output in answers[1]]
    for beam_size in (1, 4):
        body = {"text": ["go", "I am cold ."], "beam_size": beam_size, "alignments": True}
        response = client.post("/translate", json=body)
        assert response.status_code == 200, response.text
    described = client.get("/models/letters").json()
    assert described["device"] == "cuda:0"
    assert described["precision"] in {precision, "bfloat16", "float16"}
