"""The command line: one module per group of commands, and one place that turns errors into exit codes."""

import logging
import sys
import traceback

import typer

from owl_compress.cli import demo, evaluate, run, stages
from owl_compress.errors import RequestError

app = typer.Typer(
    name="owl-compress",
    help="Measure layer importance once, turn it into budgets, compress with any backend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("measure")(stages.measure)
app.command("allocate")(stages.allocate)
app.command("compress")(stages.compress)
app.command("eval")(evaluate.evaluate)
app.command("verify")(evaluate.verify)
app.command("run")(run.run)
app.command("demo")(demo.demo)

_DONE, _DEFECT, _UNSATISFIABLE = 0, 1, 2


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the request cannot be satisfied, 1 a defect of ours."""
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str] | None) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        code = app(arguments, standalone_mode=False)
    except RequestError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _refuse("interrupted: nothing was written that looks finished; run again to start over")
    except typer.TyperException as error:
        return _refuse(error.format_message())
    except Exception:  # noqa: BLE001 - whatever else escapes is a defect, and says so
        traceback.print_exc()
        sys.stderr.write("owl-compress: this is a defect of owl-compress; please report the lines above\n")
        return _DEFECT
    return code if isinstance(code, int) else _DONE


def _refuse(message: str) -> int:
    sys.stderr.write(f"owl-compress: {' '.join(message.split())}\n")
    return _UNSATISFIABLE
