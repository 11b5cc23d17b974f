"""result.json: what it looks like."""

from pathlib import Path

from owl_compress.documents.measurements import Evaluation, Footprint, FootprintChange, PerplexityRecord
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity
from owl_compress.documents.result import EarlierStep, Fallback, LinearResult, MethodRecord, Result, Totals
from owl_compress.documents.units import Unit

GOLDEN = Path(__file__).parent / "golden" / "result.json"


def example() -> Result:
    """One block of two linears, with everything that may be there."""
    dense = PerplexityRecord(
        perplexity=29.31,
        tokens=10220,
        windows=20,
        seq_len=512,
        dtype="float32",
        data="wiki.txt",
        bos="first",
        n_params=1000,
    )
    before = Footprint(
        n_params=1000,
        kv_cache_bytes_per_token=512,
        flops_per_token_blocks=28,
        flops_per_token_head=None,
        flops_per_token_attention=4096,
        context_len=64,
    )
    return Result(
        model=ModelIdentity(id="org/tiny", revision=None, family="llama", dtype="float32"),
        backend=MethodRecord(name="sparsegpt", parameters={"scope": "linear", "damping": 0.01}),
        error_measure="squared output error over squared output, under the damped Hessian",
        totals=Totals(
            asked=0.4,
            achieved=0.39,
            n_weights=14,
            bits_per_weight=32.0,
            bytes_on_disk=None,
            n_params_before=1000,
            n_params_after=1000,
        ),
        footprint=FootprintChange(before=before, after=before.model_copy(update={"n_params": 900})),
        evaluation=Evaluation(dense=dense, compressed=dense.model_copy(update={"perplexity": 87.1})),
        fallbacks=(Fallback(what="damping raised to 0.1", where="layers.0.down"),),
        notes=("a note",),
        earlier=(
            EarlierStep(
                model="org/base",
                revision=None,
                backend="structured",
                unit=Unit.WIDTH,
                achieved=0.8,
                n_params_before=1200,
                n_params_after=1000,
                plan="ef" * 32,
            ),
        ),
        calibration=CalibrationRecord(
            source="wiki.txt",
            token_ids_sha256="ab" * 32,
            sequences=12,
            seq_len=512,
            sampling="first",
            seed=0,
            bos="first",
        ),
        seed=0,
        wall_seconds=12.5,
        peak_device_bytes=0,
        peak_host_bytes=123456789,
        versions={"owl-compress": "0.1.0"},
        report="ab" * 32,
        plan="cd" * 32,
        budgets=tuple(
            LinearResult(
                name=f"layers.0.{name}",
                block="layers.0",
                unit=Unit.DENSITY,
                asked=0.4,
                achieved=achieved,
                n_weights=n_weights,
                relative_error=0.01,
                seconds=0.5,
            )
            for name, achieved, n_weights in (("up", 0.5, 6), ("down", 0.375, 8))
        ),
    )


def test_the_file_looks_as_agreed() -> None:
    assert example().to_json() == GOLDEN.read_text(encoding="utf-8")


def test_reading_and_writing_changes_no_byte(tmp_path: Path) -> None:
    result = Result.read(GOLDEN)
    assert result == example()
    result.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == GOLDEN.read_bytes()


def test_what_may_be_missing() -> None:
    content = example().model_dump()
    for name in ("footprint", "evaluation", "fallbacks", "notes"):  # a footprint was not always counted
        del content[name]
    result = Result.model_validate(content)
    assert (result.footprint, result.evaluation, result.fallbacks, result.notes) == (None, None, (), ())


def test_a_further_compression_knows_of_this_one_and_those_before() -> None:
    first, second = example().as_earlier
    assert first == example().earlier[0]
    assert (second.model, second.backend, second.achieved) == ("org/tiny", "sparsegpt", 0.39)
    assert second.plan == example().plan
