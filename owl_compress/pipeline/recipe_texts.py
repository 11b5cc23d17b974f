"""The texts of a recipe, and the windows that it asks of each."""

from owl_compress.data.text import Chats, Text
from owl_compress.data.windows import CalibrationOptions, EvaluationOptions, read_texts
from owl_compress.documents.recipe import Recipe


def read_text(options: CalibrationOptions) -> Text | Chats:
    """The text that options of calibration name.

    Raises:
        RequestError: see `owl_compress.data.text.load_text`.
    """
    text = read_texts(options)[0]
    if text is None:
        raise TypeError("options of calibration name a text")
    return text


def damage_text_options(recipe: Recipe) -> CalibrationOptions:
    """The text that the recipe wants windows of damage from; that of the calibration, if it names none."""
    source = recipe.calib if recipe.damage_data is None else recipe.damage_data
    return CalibrationOptions(source, text_field=recipe.text_field, chat_template=recipe.chat_template)


def read_damage_text(recipe: Recipe) -> Text | Chats:
    """The same, read.

    Raises:
        RequestError: see `owl_compress.data.text.load_text`.
    """
    return read_text(damage_text_options(recipe))


def calibration_options(recipe: Recipe) -> CalibrationOptions:
    """The calibration windows that a recipe asks for."""
    return CalibrationOptions(
        recipe.calib,
        samples=recipe.samples,
        seq_len=recipe.seq_len,
        sampling=recipe.sampling,
        seed=recipe.seed,
        bos=recipe.bos,
        text_field=recipe.text_field,
        chat_template=recipe.chat_template,
    )


def evaluation_options(recipe: Recipe) -> EvaluationOptions | None:
    """The windows to evaluate on that a recipe asks for; None if it names no text."""
    if recipe.data is None:
        return None
    return EvaluationOptions(
        recipe.data,
        seq_len=recipe.seq_len,
        bos=recipe.bos,
        max_windows=recipe.max_windows,
        text_field=recipe.text_field,
        chat_template=recipe.chat_template,
        stride=recipe.stride,
        protocol=recipe.protocol,
    )
