"""What every method must do, and what each of them is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.recovery.bias import Bias
from owl_compress.recovery.contract import RecoveryMethod
from owl_compress.recovery.lora import Lora
from owl_compress.recovery.losses import next_token_loss
from owl_compress.recovery.masked import Masked
from owl_compress.recovery.methods import METHODS
from owl_compress.recovery.training import TrainingPlan, train_
from owl_compress.walk.ranks import Ranks

CASES: dict[str, RecoveryMethod] = {
    "bias": Bias(), "lora": Lora(rank=4), "lora merged": Lora(rank=4, merge=True), "masked": Masked(),
}  # fmt: skip
CPU = torch.device("cpu")


def pruned(model: Any) -> Any:
    """Every other weight of every linear in the blocks set to zero."""
    for linear in find_structure(model).linears:
        linear.weight.flatten()[::2] = 0
    return model


def plan(windows: TokenWindows, steps: int = 4) -> TrainingPlan:
    return TrainingPlan(windows.ids, steps, 1, 2, 1e-2, 0.1, 0)


def test_every_registered_method_is_under_test() -> None:
    assert {method.name for method in CASES.values()} == set(METHODS.builtin)
    assert all(isinstance(method, RecoveryMethod) for method in CASES.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3", "qwen3"])
@pytest.mark.parametrize("case", CASES)
def test_a_training_lowers_the_loss_and_leaves_zeros_zero(
    make_model: Callable[[str], Any], make_windows: Callable[..., TokenWindows], case: str, family: str
) -> None:
    model, windows = pruned(make_model(family)), make_windows(4)
    structure = find_structure(model)
    zeros = {linear.name: linear.weight == 0 for linear in structure.linears}
    trainee = CASES[case].prepare_(model, structure)
    before = next_token_loss(trainee.model(input_ids=windows.ids).logits, windows.ids)
    course = train_(trainee, plan(windows, 6), next_token_loss, device=CPU)
    trainee.model.eval()
    after = next_token_loss(trainee.model(input_ids=windows.ids).logits, windows.ids)
    assert float(after.detach()) < float(before.detach())
    assert course.step == len(course.losses) == 6
    learned = trainee.learned()
    for name, zero in zeros.items():
        if f"{name}.weight" in learned:
            weight = learned[f"{name}.weight"]
            weight = weight.T if weight.shape != zero.shape else weight
            assert not bool(weight[zero].any())


@pytest.mark.parametrize("case", ["lora merged", "masked", "bias"])
def test_what_is_learned_put_into_the_plain_model_is_the_trained_one(
    make_model: Callable[[str], Any], make_windows: Callable[..., TokenWindows], case: str
) -> None:
    model, windows = pruned(make_model("llama")), make_windows(4)
    trainee = CASES[case].prepare_(model, find_structure(model))
    train_(trainee, plan(windows), next_token_loss, device=CPU)
    plain = pruned(make_model("llama"))
    parameters = dict(plain.named_parameters())
    with torch.no_grad():
        for name, value in trainee.learned().items():
            parameters[name].copy_(value)
        trainee.model.eval()
        expected = trainee.model(input_ids=windows.ids).logits
        assert torch.equal(plain(input_ids=windows.ids).logits, expected)


def test_only_what_a_method_says_is_trained(make_model: Callable[[str], Any]) -> None:
    model = pruned(make_model("llama"))
    structure = find_structure(model)
    trained = {name: one for name, one in model.named_parameters() if one.ndim == 1}
    n_kept = sum(int(linear.weight.count_nonzero()) for linear in structure.linears)
    assert Bias().prepare_(model, structure).n_trained == sum(one.numel() for one in trained.values())
    masked = Masked().prepare_(model, structure)
    assert masked.n_trained == n_kept + sum(one.numel() for one in trained.values())
    assert not model.get_input_embeddings().weight.requires_grad
    changes = sum(4 * sum(linear.shape) for linear in structure.linears)
    assert Lora(rank=4, merge=True).prepare_(model, structure).n_trained == changes


def test_a_low_rank_change_is_the_product_scaled_and_masked(make_model: Callable[[str], Any]) -> None:
    model = pruned(make_model("llama"))
    structure = find_structure(model)
    linear = next(iter(structure.linears))
    before = linear.weight.clone()
    trainee = Lora(rank=4, alpha=2.0, merge=True).prepare_(model, structure)
    a, b = (trainee.parameters[f"{linear.name}.weight.{name}"] for name in "ab")
    torch.nn.init.normal_(b)
    expected = before + 0.5 * (b @ a) * (before != 0)
    assert torch.allclose(trainee.learned()[f"{linear.name}.weight"], expected)


def test_steps_are_cut_to_the_longest_gradient_and_bits_do_not_depend_on_the_caller(
    make_model: Callable[[str], Any], make_windows: Callable[..., TokenWindows]
) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model, windows = pruned(make_model("opt")), make_windows(4)
        trainee = Masked().prepare_(model, find_structure(model))
        found.append(train_(trainee, plan(windows), next_token_loss, device=CPU).losses)
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]


@pytest.mark.parametrize(("passes", "of", "mine"), [(4, 1, [0, 1, 2, 3]), (4, 2, [1, 3]), (6, 3, [1, 4])])
def test_passes_are_divided_evenly(passes: int, of: int, mine: list[int]) -> None:
    assert list(Ranks(min(1, of - 1), of).share(passes)) == mine


def test_passes_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(RequestError, match="--accumulate to a multiple of 3"):
        Ranks(0, 3).share(4)
