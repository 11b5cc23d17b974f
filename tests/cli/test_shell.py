"""Versions, completion, and command lines that are not ours."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

from owl_compress.cli import _exit_code

COMPLETION = "_OWL_COMPRESS_COMPLETE"


def test_versions_are_told(done: Callable[..., Any]) -> None:
    out = done("--version").out
    assert out.startswith(f"owl-compress {version('owl-compress')}, torch {version('torch')}, ")
    assert "python 3." in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    monkeypatch.setenv(COMPLETION, f"source_{shell}")
    assert _exit_code([]) == 0
    assert f"{COMPLETION}=complete_{shell}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("owl-compress al", {"allocate"}),
        ("owl-compress allocate r.json --spars", {"--sparsity"}),
        ("owl-compress run model --skip x --allocator owl --prote", {"--protect-first", "--protect-last"}),
        ("owl-compress run model --backend w", {"wanda"}),
    ],
)
def test_commands_options_and_methods_are_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, expected: set[str]
) -> None:
    monkeypatch.setenv(COMPLETION, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert _exit_code([]) == 0
    assert set(capsys.readouterr().out.split()) == expected


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
@pytest.mark.parametrize(
    ("shell", "message"),
    [
        ("", "the shell cannot be detected (no parent)"),
        ("dash", "there is no completion for the shell 'dash'"),
    ],
)
def test_a_shell_that_is_none_of_those_that_complete_is_refused(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], option: str, shell: str, message: str
) -> None:
    def detect() -> tuple[str, str]:
        if not shell:
            raise OSError("no parent")
        return shell, f"/bin/{shell}"

    monkeypatch.setattr("shellingham.detect_shell", detect)
    told = refused(option)
    assert f"{message}: call this from bash, zsh, fish" in told


def test_completing_an_option_loads_no_torch() -> None:
    code = (
        "import sys; from owl_compress.cli import _exit_code; _exit_code([]);sys.exit('torch' in sys.modules)"
    )
    words = {COMPLETION: "complete_bash", "COMP_WORDS": "owl-compress run m --group", "COMP_CWORD": "3"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=dict(os.environ) | words, stdout=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mesure",), "unknown command 'mesure': did you mean 'measure'? (see owl-compress --help)"),
        (("xyzzy",), "unknown command 'xyzzy': known: allocate, "),
        (("run",), "missing argument MODEL: "),
        (("measure", "model"), "missing option --out / -o: File to write (see owl-compress measure --help)"),
        (("run", "m", "--sparsty", "0.3"), "unknown option --sparsty: did you mean '--sparsity'? (see "),
        (("run", "m", "--yyyy"), "unknown option --yyyy: the help lists what there is (see owl-compress run"),
        (("run", "m", "--group-sze", "3"), "unknown option --group-sze: did you mean '--group-size'?"),
        (("--vers",), "unknown option --vers: did you mean '--version'?"),
        (("measure", "m", "--samples", "x", "-o", "r"), "--samples cannot be 'x': "),
        (("eval", "m", "--prompt-len", "0"), "prompt-len 0 must be at least 1"),
        (("eval", "m", "--json=3"), "--json takes no value: write it alone (see "),
        (("eval", "m", "x", "y"), "'x y' is more than the command takes: drop it"),
        (("eval", "m", "extra"), "'extra' is more than the command takes: drop it"),
    ],
)
def test_a_command_line_that_is_not_ours_is_one_line(
    refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(*arguments)


def test_an_option_without_its_value_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["eval", "m", "--data"]) == 2
    assert capsys.readouterr().err.startswith("owl-compress: --data needs a value: write one after it (see ")
