"""KL divergence and agreement on the likeliest token, against the models' own logits."""

import logging
import math
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from owl_compress.data.text import Text
from owl_compress.data.windows import TokenWindows, evaluation_windows
from owl_compress.documents.measurements import AgreementRecord
from owl_compress.errors import RequestError
from owl_compress.evaluation.agreement import agreement, evaluate_against
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.evaluation.predictions import dense_predictions, evaluate_dense
from owl_compress.models.structure import find_structure
from owl_compress.walk import outputs

MakeModel = Callable[[str], Any]
MakeWindows = Callable[..., TokenWindows]


@pytest.fixture
def windows(tokenizer: Any, prose: str) -> TokenWindows:
    return evaluation_windows(tokenizer, Text("prose", (prose,)), seq_len=40, bos="first", max_windows=7)


def compress_somehow_(model: Any) -> None:
    with torch.no_grad():
        for linear in find_structure(model).linears:
            linear.weight.mul_(0.5)


def compressed(model: Any) -> Any:
    copy = deepcopy(model)
    compress_somehow_(copy)
    return copy


@torch.no_grad()
def by_hand(dense: Any, other: Any, windows: TokenWindows) -> tuple[float, float]:
    """Divergence and agreement from whole logits in float64, one scored token after the other."""
    divergences, hits = [], []
    for row, (first, stop) in zip(windows.ids, windows.scoring.ranges.tolist(), strict=True):
        theirs, ours = (one(input_ids=row[None]).logits[0].double().softmax(dim=-1) for one in (dense, other))
        for place in range(first - 1, stop - 1):
            p, q = theirs[place], ours[place]
            divergences.append(float((p * (p / q).log()).sum()))
            hits.append(int(p.argmax()) == int(q.argmax()))
    return math.fsum(divergences) / len(divergences), sum(hits) / len(hits)


def test_agreement_is_what_the_logits_of_both_say(family_model: Any, make_windows: MakeWindows) -> None:
    windows, other = make_windows(3, 24), compressed(family_model)
    found = agreement(other, dense_predictions(family_model, windows), batch_size=2)
    divergence, top1 = by_hand(family_model, other, windows)
    assert found.kl == pytest.approx(divergence, rel=2e-3, abs=1e-7)
    assert found.top1 == pytest.approx(top1)
    assert found.positions == 3 * 23


def test_a_model_agrees_with_itself_entirely(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    dense = dense_predictions(tiny_llama, windows, batch_size=3)
    found = agreement(deepcopy(tiny_llama), dense, batch_size=2)
    assert (found.kl, found.top1) == (pytest.approx(0.0, abs=1e-9), 1.0)


def test_the_model_may_be_compressed_in_place(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    before = deepcopy(tiny_llama)
    dense = dense_predictions(tiny_llama, windows)
    compress_somehow_(tiny_llama)
    found = agreement(tiny_llama, dense)
    assert (found.kl, found.top1) == pytest.approx(by_hand(before, tiny_llama, windows), rel=1e-4)
    assert found.kl > 1e-4


@pytest.mark.parametrize("stride", [None, 7, 39])
def test_where_windows_overlap_what_is_scored_is_compared(
    tiny_llama: LlamaForCausalLM, tokenizer: Any, prose: str, stride: int | None
) -> None:
    text = Text("prose", (prose[:200],))
    windows = evaluation_windows(tokenizer, text, seq_len=40, bos="first", stride=stride)
    other = compressed(tiny_llama)
    found = agreement(other, dense_predictions(tiny_llama, windows), batch_size=3)
    assert (found.kl, found.top1) == pytest.approx(by_hand(tiny_llama, other, windows), rel=1e-4)
    assert found.positions == windows.scoring.n_tokens


def test_one_pass_gives_both_and_changes_no_perplexity(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows
) -> None:
    other = compressed(tiny_llama)
    record, dense = evaluate_dense(tiny_llama, windows, "org/tiny", batch_size=2)
    assert record == perplexity(tiny_llama, windows, batch_size=2)
    changed, found = evaluate_against(other, dense, batch_size=3)
    assert changed == perplexity(other, windows, batch_size=3)
    apart = agreement(other, dense_predictions(tiny_llama, windows, name="org/tiny"))
    assert found.kl == pytest.approx(apart.kl, rel=1e-4)
    assert found == AgreementRecord(
        kl=found.kl,
        top1=apart.top1,
        positions=7 * 39,
        against="org/tiny",
        data="prose",
        windows=7,
        seq_len=40,
        bos="first",
    )


def test_no_more_logits_are_held_than_the_limit(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, sizes = compressed(tiny_llama), list[int]()
    whole = agreement(other, dense_predictions(tiny_llama, windows))
    monkeypatch.setattr(outputs, "_LOGITS_AT_ONCE", 3 * 259)
    monkeypatch.setattr("owl_compress.evaluation.predictions._LOOKED_AT", 3)
    for model in (tiny_llama, other):
        model.lm_head.register_forward_hook(lambda _module, _inputs, logits: sizes.append(logits.shape[1]))
    pieces = agreement(other, dense_predictions(tiny_llama, windows, batch_size=4), batch_size=4)
    assert pieces.kl == pytest.approx(whole.kl, rel=1e-5)
    assert pieces.top1 == whole.top1
    assert max(sizes) == 3


def test_modes_and_weights_are_as_before(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    other = compressed(tiny_llama)
    tiny_llama.train()
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    agreement(other, dense_predictions(tiny_llama, windows))
    assert tiny_llama.training
    assert not other.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_llama.state_dict().items())
    tiny_llama(input_ids=windows.ids[:1], labels=windows.ids[:1]).loss.backward()
    assert tiny_llama.lm_head.weight.grad is not None


def test_another_vocabulary_is_refused(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    dense = dense_predictions(tiny_llama, windows, name="org/tiny")
    other = deepcopy(tiny_llama)
    other.resize_token_embeddings(264)
    with pytest.raises(RequestError, match="org/tiny predicts 259 tokens and the model beside it 264: only"):
        agreement(other, dense)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_changed_in_the_meantime_is_refused(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows, same: bool
) -> None:
    other = deepcopy(tiny_llama)
    dense = dense_predictions(tiny_llama, windows)
    with torch.no_grad():
        tiny_llama.model.norm.weight.mul_(-1)
    with pytest.raises(RequestError, match="has changed since it was run: load the dense model again"):
        agreement(tiny_llama if same else other, dense)


def test_nan_is_refused(tiny_llama: LlamaForCausalLM, windows: TokenWindows, tokenizer: Any) -> None:
    dense, other = dense_predictions(tiny_llama, windows), deepcopy(tiny_llama)
    for token in ("p", "a"):  # late in the text, and in its first window
        with torch.no_grad():
            other.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(token)] = math.nan
        with pytest.raises(RequestError, match="the predictions hold NaN"):
            agreement(other, dense)


def test_a_token_ruled_out_gives_the_largest_number_not_infinity(
    tiny_llama: LlamaForCausalLM, windows: TokenWindows, caplog: pytest.LogCaptureFixture
) -> None:
    other = deepcopy(tiny_llama)

    def rule_out(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        without = logits.clone()
        without[..., 5] = -torch.inf
        return without

    dense = dense_predictions(tiny_llama, windows)
    other.lm_head.register_forward_hook(rule_out)
    with caplog.at_level(logging.WARNING):
        assert agreement(other, dense).kl == sys.float_info.max
    assert "has no end" in caplog.text
    tiny_llama.lm_head.register_forward_hook(rule_out)
    assert agreement(other, dense_predictions(tiny_llama, windows)).kl == pytest.approx(0.0, abs=1e-9)


def test_predictions_that_do_not_follow_from_the_last_block_are_refused(
    make_model: MakeModel, make_windows: MakeWindows, running_head: Callable[[Any], Any]
) -> None:
    model, windows = make_model("unknown"), make_windows(2, 24)
    model.head = running_head(model.head)
    with pytest.raises(RequestError, match="more than one position at a time: what it predicts cannot be"):
        dense_predictions(model, windows)


@pytest.mark.gpu
def test_agreement_on_a_gpu(tiny_llama: LlamaForCausalLM, windows: TokenWindows) -> None:
    other = compressed(tiny_llama)
    here = agreement(other, dense_predictions(tiny_llama, windows))
    there = agreement(other, dense_predictions(tiny_llama, windows, device="cuda"), device="cuda")
    assert there.kl == pytest.approx(here.kl, rel=1e-3)
    assert {parameter.device.type for parameter in tiny_llama.parameters()} == {"cpu"}
    assert {buffer.device.type for buffer in tiny_llama.buffers()} == {"cpu"}
