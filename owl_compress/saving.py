"""Writing a model as a checkpoint that plain transformers loads."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from owl_compress.explain import quiet_transformers
from owl_compress.packing import PackedCheckpoint

logger = logging.getLogger(__name__)

GENERATION_CONFIG_NAME = "generation_config.json"


def save_checkpoint(
    model: Any,
    tokenizer: Any | None,
    folder: Path,
    *,
    packed: PackedCheckpoint | None = None,
    max_shard_size: str = "50GB",
) -> tuple[str, ...]:
    """Write safetensors, configuration, generation configuration and tokenizer into the existing `folder`.

    With `packed` its tensors are written instead of the model's own.

    `folder` is meant to be the temporary one of `files.output_folder`, which turns a full disk into one line
    and leaves nothing behind; errors of the writer pass through here untouched. The configuration names the
    dtype that the weights have. The same model gives the same bytes. Code of a model loaded with
    trust_remote_code is copied along by transformers.

    Returns:
        Notes for the result: what was saved although transformers objects to it.
    """
    notes = []
    with quiet_transformers():
        generation = getattr(model, "generation_config", None) if model.can_generate() else None
        with _plain_generation_config(model, generation), _described(model.config, packed):
            model.save_pretrained(
                folder, state_dict=packed.tensors if packed else None, max_shard_size=max_shard_size
            )
        if generation is not None:
            notes += _save_generation_config(generation, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return tuple(notes)


@contextmanager
def _described(config: Any, packed: PackedCheckpoint | None) -> Iterator[None]:
    """Lend the configuration the description of packed tensors; the model in memory is an ordinary one."""
    if packed is None:
        yield
        return
    config.quantization_config = packed.quantization_config
    try:
        yield
    finally:
        del config.quantization_config


@contextmanager
def _plain_generation_config(model: Any, generation: Any | None) -> Iterator[None]:
    """Lend the model a default generation configuration, so that its own cannot stop `save_pretrained`.

    Many published models carry settings that transformers refuses to write, such as a temperature without
    do_sample; they are what the author shipped and none of our business.
    """
    if generation is None:
        yield
        return
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = generation


def _save_generation_config(generation: Any, folder: Path) -> list[str]:
    """Write the generation configuration exactly as it is, and say so if transformers calls it invalid."""
    # compile_config may hold what JSON cannot; transformers leaves it out of its own file too.
    generation.to_json_file(folder / GENERATION_CONFIG_NAME, use_diff=True, keys_to_pop=["compile_config"])
    try:
        generation.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        note = f"generation_config.json is kept as the source has it, although transformers objects: {reason}"
        logger.warning(note)
        return [note]
    return []
