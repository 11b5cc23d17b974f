"""Text of strangers made safe to show: the one place where that is done."""


def plain(text: str) -> str:
    """`text` in characters that a terminal shows and does not obey: all others are spelled out.

    Names come from files of strangers: of blocks, tensors, allocators, folders. Control characters in them
    could rewrite the screen, marks of direction reorder it, and half a surrogate pair cannot be written.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
