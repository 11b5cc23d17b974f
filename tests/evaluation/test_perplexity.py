import logging
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from transformers import LlamaForCausalLM

from owl_compress.data.text import Text
from owl_compress.data.windows import TokenWindows, evaluation_windows
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.models.state import evaluation_mode, n_parameters

T = TypeVar("T")


@pytest.fixture
def windows(tokenizer: Any, prose: str) -> TokenWindows:
    return evaluation_windows(tokenizer, Text("prose", (prose,)), seq_len=40, bos="first", max_windows=7)


def perplexity_by_hand(model: LlamaForCausalLM, windows: TokenWindows) -> float:
    """Straight from the definition, one token at a time, in float64."""
    total, count = 0.0, 0
    for row in windows.ids:
        with torch.no_grad():
            probabilities = model(input_ids=row[None]).logits[0].double().softmax(dim=-1)
        for position in range(len(row) - 1):
            total -= math.log(probabilities[position, row[position + 1]])
            count += 1
    return math.exp(total / count)


def test_perplexity_is_what_its_definition_says(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    record = perplexity(tiny_llama, windows)
    assert record.perplexity == pytest.approx(perplexity_by_hand(tiny_llama, windows), rel=1e-6)


def test_perplexity_is_what_transformers_calls_the_loss(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows
) -> None:
    with torch.no_grad():
        loss = tiny_llama(input_ids=windows.ids, labels=windows.ids).loss.item()
    assert perplexity(tiny_llama, windows).perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows
) -> None:
    torch.nn.init.zeros_(tiny_llama.lm_head.weight)
    assert perplexity(tiny_llama, windows).perplexity == pytest.approx(259, rel=1e-6)


@pytest.mark.parametrize("batch_size", [2, 3, 7, 100])
def test_the_batch_size_changes_nothing(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows, batch_size: int
) -> None:
    one = perplexity(tiny_llama, windows).perplexity
    assert perplexity(tiny_llama, windows, batch_size=batch_size).perplexity == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 38, 39])
def test_the_size_of_a_chunk_changes_nothing(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = perplexity(tiny_llama, windows).perplexity
    monkeypatch.setattr("owl_compress.evaluation.perplexity._CHUNK_BYTES", rows * 259 * 4)
    assert perplexity(tiny_llama, windows).perplexity == pytest.approx(whole, rel=1e-7)


def test_the_record_is_filled(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    record = perplexity(tiny_llama, windows)
    assert record.model_dump(exclude={"perplexity"}) == {
        "characters": 7 * 39,
        "bytes": 7 * 39,
        "bits_per_character": pytest.approx(math.log2(record.perplexity), rel=1e-12),
        "bits_per_byte": pytest.approx(math.log2(record.perplexity), rel=1e-12),
        "tokens": 7 * 39,
        "windows": 7,
        "seq_len": 40,
        "dtype": "float32",
        "data": "prose",
        "bos": "first",
        # embedding and head; per block q, o (32x32), k, v (16x32), three of the FFN, two norms; the last norm
        "n_params": 2 * 259 * 32 + 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32,
    }


def test_tied_parameters_count_once(tiny_llama: LlamaForCausalLM) -> None:
    before = n_parameters(tiny_llama)
    tiny_llama.lm_head.weight = tiny_llama.model.embed_tokens.weight
    assert n_parameters(tiny_llama) == before - 259 * 32


def test_losses_of_a_half_precision_model_are_taken_in_float32(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows
) -> None:
    model = tiny_llama.to(torch.bfloat16)
    record = perplexity(model, windows, batch_size=1)
    assert record.dtype == "bfloat16"
    assert record.perplexity == pytest.approx(perplexity_by_hand(model, windows), rel=1e-6)


def test_mode_cache_and_gradients_are_as_before(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    tiny_llama.train()
    tiny_llama.model.layers[1].eval()
    modes = [module.training for module in tiny_llama.modules()]
    tiny_llama.config.use_cache = True
    perplexity(tiny_llama, windows)
    assert [module.training for module in tiny_llama.modules()] == modes
    assert tiny_llama.config.use_cache is True
    tiny_llama(input_ids=windows.ids[:1], labels=windows.ids[:1]).loss.backward()
    assert tiny_llama.lm_head.weight.grad is not None


def test_evaluation_mode_ends_after_an_error_too(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.train()
    seen = []

    def fail_inside() -> None:
        with evaluation_mode(tiny_llama):
            seen.append((tiny_llama.training, tiny_llama.config.use_cache))
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert seen == [(False, False)]
    assert tiny_llama.training
    assert tiny_llama.config.use_cache is True


def test_nan_stops_with_the_window_named(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows, tokenizer: Any
) -> None:
    # A NaN in the embedding of one token reaches only the windows that hold it; "p" comes late in the text.
    token = tokenizer.convert_tokens_to_ids("p")
    first = next(number for number, row in enumerate(windows.ids.tolist(), start=1) if token in row)
    assert first > 1
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[token] = math.nan
    with pytest.raises(RequestError, match=f"NaN in window {first} of 7"):
        perplexity(tiny_llama, windows, batch_size=3)


@pytest.mark.parametrize("scale", [1e6, math.inf])
def test_a_destroyed_model_gives_the_largest_number_not_infinity(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    def shout(module: Any, arguments: Any, logits: torch.Tensor) -> torch.Tensor:
        certain = torch.full_like(logits, -scale)  # token 0, which never comes, against all others
        certain[..., 0] = 0
        return certain

    with caplog.at_level(logging.WARNING), torch.no_grad():
        tiny_llama.lm_head.register_forward_hook(shout)
        record = perplexity(tiny_llama, windows)
    assert record.perplexity == sys.float_info.max
    assert "overflows" in caplog.text


def test_a_foreign_tokenizer_is_refused(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    tiny_llama.resize_token_embeddings(60)
    with pytest.raises(RequestError, match="vocabulary of 60"):
        perplexity(tiny_llama, windows)


def test_running_out_of_memory_names_the_remedy(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(tiny_llama, "forward", fail)
    with pytest.raises(RequestError, match=r"while evaluating \(another 2.00 GiB .*--batch-size"):
        perplexity(tiny_llama, windows)


def test_progress_sees_every_batch(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    seen: list[tuple[int, str]] = []

    class Watching:
        def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
            for item in items:
                seen.append((total, what))
                yield item

    perplexity(tiny_llama, windows, batch_size=3, progress=Watching())
    assert seen == [(3, "evaluating")] * 3


def test_the_model_stays_where_it_is(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    assert (
        perplexity(tiny_llama, windows, device="cpu").perplexity == perplexity(tiny_llama, windows).perplexity
    )
    assert tiny_llama.device == torch.device("cpu")


@pytest.mark.gpu
def test_the_model_is_moved_and_brought_back(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    on_host = perplexity(tiny_llama, windows).perplexity
    assert perplexity(tiny_llama, windows, device="cuda").perplexity == pytest.approx(on_host, rel=1e-4)
    assert tiny_llama.device == torch.device("cpu")
    assert not tiny_llama.lm_head.weight.is_inference()


def strided_by_hand(model: LlamaForCausalLM, ids: list[int], seq_len: int, stride: int) -> float:
    """As the Hugging Face page on models of fixed length tells it: the model's own loss, labels masked."""
    losses, previous = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + seq_len, len(ids))
        window = torch.tensor([ids[begin:end]])
        labels = window.clone()
        labels[:, : previous - begin] = -100
        labels[:, 0] = -100  # which the shift leaves out in any case
        with torch.no_grad():
            loss = model(input_ids=window, labels=labels).loss
        losses.append((float(loss), int((labels != -100).sum())))
        previous = end
        if end == len(ids):
            break
    return math.exp(sum(loss * count for loss, count in losses) / sum(count for _, count in losses))


@pytest.mark.parametrize("stride", [1, 7, 20, 38, 39])
def test_a_stride_gives_what_the_page_on_models_of_fixed_length_describes(
    tiny_llama: LlamaForCausalLM, tokenizer: Any, prose: str, stride: int
) -> None:
    text = prose[:130]
    windows = evaluation_windows(tokenizer, Text("prose", (text,)), seq_len=40, bos="first", stride=stride)
    record = perplexity(tiny_llama, windows, batch_size=4)
    assert record.perplexity == pytest.approx(
        strided_by_hand(tiny_llama, tokenizer(text).input_ids, 40, stride), rel=1e-6
    )
    assert (record.tokens, record.stride) == (130, stride)  # all of the text; BOS is what the first follows


def test_bits_are_of_the_text_that_is_scored(tiny_llama: LlamaForCausalLM, tokenizer: Any) -> None:
    torch.nn.init.zeros_(tiny_llama.lm_head.weight)  # each token costs log2(259) bits
    text = "naïve owls " * 30
    windows = evaluation_windows(tokenizer, Text("text", (text,)), seq_len=30, bos="first", stride=10)
    record = perplexity(tiny_llama, windows)
    assert (record.characters, record.bytes, record.tokens) == (330, 360, 360)
    assert record.bits_per_byte == pytest.approx(math.log2(259), rel=1e-6)
    assert record.bits_per_character == pytest.approx(math.log2(259) * 360 / 330, rel=1e-6)


def test_bits_are_left_out_where_the_text_is_not_known(
    tiny_llama: LlamaForCausalLM, make_windows: Any
) -> None:
    record = perplexity(tiny_llama, make_windows(2, 16))
    written = record.model_dump(mode="json")
    assert not {"bits_per_byte", "bits_per_character", "bytes", "characters", "stride"} & written.keys()
