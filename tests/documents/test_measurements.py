"""What was measured: how it is written down."""

import pytest
from pydantic import ValidationError

from owl_compress.documents.measurements import AgreementRecord, Evaluation, PerplexityRecord

AGREEMENT = AgreementRecord(
    kl=0.25,
    top1=0.75,
    positions=140,
    against="org/tiny",
    data="wiki.txt",
    windows=20,
    seq_len=8,
    bos="first",
)
PERPLEXITY = PerplexityRecord(
    perplexity=29.31,
    tokens=140,
    windows=20,
    seq_len=8,
    dtype="float32",
    data="wiki.txt",
    bos="first",
    n_params=1000,
)


def test_an_evaluation_without_agreement_is_written_as_it_always_was() -> None:
    evaluation = Evaluation(dense=PERPLEXITY, compressed=PERPLEXITY)
    assert set(evaluation.model_dump(mode="json")) == {"dense", "compressed"}


def test_agreement_comes_back_from_a_file() -> None:
    evaluation = Evaluation(dense=PERPLEXITY, compressed=PERPLEXITY, agreement=AGREEMENT)
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


@pytest.mark.parametrize("wrong", [{"kl": -1e-9}, {"top1": 1.01}, {"top1": -0.01}, {"positions": 0}])
def test_what_no_agreement_can_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AgreementRecord.model_validate(AGREEMENT.model_dump() | wrong)
