"""How options are called: in Python, in files, and on the command line."""


def plain_name(option: object) -> str:
    """Name of an option with underscores, however it was written."""
    return str(option).removeprefix("--").replace("-", "_").removesuffix("_")


def option_name(field: str) -> str:
    """Name of a field on the command line, without the leading hyphens."""
    return field.strip("_").replace("_", "-")
