"""Conversations as text: written as the chat template of a model's tokenizer writes them."""

from collections.abc import Sequence
from typing import Any

from owl_compress.data.records import Conversation
from owl_compress.errors import RequestError
from owl_compress.progress import SILENT, Progress


def written(
    tokenizer: Any, conversations: Sequence[Conversation], source: str, progress: Progress = SILENT
) -> tuple[str, ...]:
    """Each conversation as the template of `tokenizer` writes it.

    The BOS that many templates put in front is taken off again: where one stands is said by `bos` of the
    windows, for conversations as for any text.

    Raises:
        RequestError: the tokenizer has no template, or the template refuses a conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError(
            f"the tokenizer of this model has no chat template to write {source} with: take the model's "
            "instruction-tuned variant, or drop --chat-template and name a field of plain text"
        )
    numbered = list(enumerate(conversations, start=1))
    return tuple(
        _written(tokenizer, conversation, f"conversation {number} of {source}")
        for number, conversation in progress.track(numbered, total=len(numbered), what="writing chats")
    )


def _written(tokenizer: Any, conversation: Conversation, where: str) -> str:
    # What a template raises is its author's choice: errors of jinja, of Python, or its own raise_exception.
    try:
        text = tokenizer.apply_chat_template([dict(message) for message in conversation], tokenize=False)
    except ImportError as error:
        raise RequestError(
            f"a chat template needs the package jinja2: pip install jinja2 ({error})"
        ) from error
    except Exception as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(
            f"{where}: the model's chat template refuses it ({problem}): repair it, or leave it out"
        ) from error
    return str(text).removeprefix(tokenizer.bos_token or "")
