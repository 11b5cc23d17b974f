"""Evaluation of a model or of an output folder."""

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.tables import perplexity_table


def evaluate(
    model: options.Model,
    data: options.Data = "wikitext2",
    text_field: options.TextField = "text",
    seq_len: options.SeqLen = None,
    bos: options.Bos = "auto",
    max_windows: options.MaxWindows = None,
    batch_size: options.BatchSize = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the perplexity of a model, or of a folder that `compress` or `run` wrote."""
    from owl_compress.device import memory_errors, resolve_device
    from owl_compress.pipeline import stages

    output = Output(as_json=as_json, quiet=quiet)
    where = resolve_device(device)
    output.say(f"loading {model}")
    with memory_errors("evaluating"):
        loaded = stages.load(
            model,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        record = stages.evaluate(
            loaded,
            data,
            seq_len=seq_len,
            bos=bos,
            max_windows=max_windows,
            text_field=text_field,
            batch_size=batch_size,
            device=where,
            progress=output.progress,
        )
    output.answer(record.model_dump(mode="json"), perplexity_table(record))
