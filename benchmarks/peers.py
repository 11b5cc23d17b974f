"""What does a whole run cost beside the programs it stands in for? CPU seconds and peak memory, in turns.

    git clone https://github.com/luuyin/OWL
    python -m venv peers && peers/bin/pip install llmcompressor accelerate
    python benchmarks/peers.py --calib validation.txt --owl OWL --peers-python peers/bin/python --work FOLDER
        [--only "owl wanda"] [--repeats 1] > rows.jsonl

The embedded model is saved once as a dense folder of float32, and the first windows of the text as token
ids. Then every run is a process of its own, with one thread: it starts, reads that folder, compresses and
writes its result; nobody evaluates. Ours tokenises the text besides. CPU seconds are of that process from
start to end, memory is the most that was resident.

- *owl* wanda and sparsegpt: the authors' main.py (70 %, M = 5, lambda = 0.08), run by `peer_owl.py`. How far
  LOD and plans are apart is said, and which share of the positions in the masks is equal.
- *wanda*, *sparsegpt* (60 %) and *gptq* (4 and 3 bits, groups of 64): llm-compressor, uniform, run by
  `peer_llm_compressor.py`.

Each is compared with ours as it is by default; *disk*: with `--offload disk`, the same to the last bit; and
with `--statistics` other than by default: *sequential* (the default of SparseGPT, and of Wanda at 70 %),
*true-sequential* (of gptq; one pass for each block), and of Wanda *dense* (the default at 60 %; one pass over
the blocks for all).
"""

import argparse
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from statistics import median
from typing import Any

import torch
from processes import COMMAND, Spent, apart, spent_by
from rows import print_row
from torch import Tensor

from owl_compress import Recipe, Session
from owl_compress.checkpoints.tensors import tensor_from_checkpoint

_HERE = Path(__file__).parent
_OWL_SETTINGS = {"sparsity": 0.7, "lam": 0.08, "m": 5}
_OWL = ["--allocator", "owl", "--sparsity", "0.7", "--lam", "0.08", "--metric", "lod@5"]
_PRUNED = ["--allocator", "uniform", "--sparsity", "0.6"]
_VARIANTS: Mapping[str, Sequence[str]] = {
    "default": [],
    "disk": ["--offload", "disk"],
    "dense": ["--statistics", "dense"],
    "sequential": ["--statistics", "sequential"],
    "true-sequential": ["--statistics", "true-sequential"],
}


@dataclass(frozen=True)
class Case:
    """What both sides are asked for: theirs in the words of their runner, ours as options of `run`."""

    peer: str
    method: str
    ours: Sequence[str]
    amount: str = ""

    def variants(self, asked: Sequence[str]) -> list[str]:
        """Those of `asked` that are not the default, or refused."""
        if "gptq" in self.ours:
            left_out = {"dense", "true-sequential"}
        elif "wanda" in self.ours:
            left_out = {"sequential" if self.peer == "owl" else "dense"}
        else:
            left_out = {"dense", "sequential"}
        return [name for name in asked if name not in left_out]


_CASES = {
    "owl wanda": Case("owl", "wanda_owl", [*_OWL, "--backend", "wanda"]),
    "owl sparsegpt": Case("owl", "sparsegpt_owl", [*_OWL, "--backend", "sparsegpt"]),
    "wanda": Case("llm-compressor", "wanda", [*_PRUNED, "--backend", "wanda"], "0.6"),
    "sparsegpt": Case("llm-compressor", "sparsegpt", [*_PRUNED, "--backend", "sparsegpt"], "0.6"),
    **{
        f"gptq {bits}": Case(
            "llm-compressor",
            "gptq",
            ["--allocator", "uniform", "--backend", "gptq", "--bits", str(bits), "--bit-choices", str(bits)],
            str(bits),
        )
        for bits in (4, 3)
    },
}


@dataclass(frozen=True)
class Bench:
    """Where everything is, and what both sides are given."""

    work: Path
    owl: Path
    peers_python: Path
    calib: Path
    samples: int
    seq_len: int

    def prepare(self) -> None:
        """The dense folder and the token ids; what is there already stays."""
        if (self.work / "tokens.json").exists():
            return
        self.work.mkdir(parents=True, exist_ok=True)
        recipe = {"model": "builtin", "allocator": "uniform", "backend": "wanda", "sparsity": 0.5}
        text = {
            "calib": str(self.calib),
            "samples": self.samples,
            "seq_len": self.seq_len,
            "sampling": "first",
        }
        session = Session.open(Recipe.from_options(recipe | text))
        model, tokenizer = session.loaded.model, session.loaded.tokenizer
        model.save_pretrained(self.work / "llama")
        tokenizer.save_pretrained(self.work / "llama")
        if session.calibration is None:
            raise ValueError("Wanda needs calibration text")
        (self.work / "tokens.json").write_text(json.dumps(session.calibration.ids.tolist()), encoding="utf-8")

    def theirs(self, case: Case) -> Spent:
        """Into the folder `theirs`."""
        given = ["tokens.json", "llama", "theirs"]
        if case.peer == "owl":
            settings = map(str, _OWL_SETTINGS.values())
            runner = [str(_HERE / "peer_owl.py"), str(self.owl), case.method, *given, *settings]
        else:
            runner = [str(_HERE / "peer_llm_compressor.py"), case.method, *given, case.amount]
        return self._spent([str(self.peers_python), *runner], "theirs")

    def ours(self, case: Case, variant: Sequence[str]) -> Spent:
        """Into the folder `ours`, as a user types it."""
        text = ["--calib", str(self.calib), "--samples", str(self.samples), "--seq-len", str(self.seq_len)]
        command = [
            "run",
            "llama",
            *case.ours,
            *variant,
            *text,
            "--sampling",
            "first",
            "-o",
            "ours",
            "--quiet",
        ]
        return self._spent([COMMAND, *command], "ours")

    def _spent(self, command: Sequence[str], out: str) -> Spent:
        rmtree(self.work / out, ignore_errors=True)
        return spent_by(command, self.work, self.work / f"{out}.log")


def main() -> None:
    """Every case, or those asked for: theirs, then ours in each variant, as often as repeated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("calib", "owl", "peers-python", "work"):
        # Not resolved: what is behind the link that is the interpreter of an environment is not in it.
        parser.add_argument(f"--{name}", required=True, type=lambda path: Path(path).absolute())
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="", help="names of cases, by comma")
    parser.add_argument("--variants", default=",".join(_VARIANTS), help="of ours, by comma")
    arguments = vars(parser.parse_args())
    only, repeats, variants = (arguments.pop(name) for name in ("only", "repeats", "variants"))
    bench = Bench(**arguments)
    apart(bench.prepare)
    for name in only.split(",") if only else _CASES:
        _report(bench, name, variants.split(","), repeats)


def _report(bench: Bench, name: str, variants: Sequence[str], repeats: int) -> None:
    case = _CASES[name]
    theirs: list[Spent] = []
    ours: dict[str, list[Spent]] = {variant: [] for variant in case.variants(variants)}
    agreement: dict[str, Mapping[str, Any]] = {}
    for _ in range(repeats):
        theirs.append(bench.theirs(case))
        for variant, spent in ours.items():
            spent.append(bench.ours(case, _VARIANTS[variant]))
            if case.peer == "owl":
                agreement[variant] = apart(_agreement, bench.work, theirs[-1].output)
    weights_bytes = (bench.work / "llama" / "model.safetensors").stat().st_size
    for variant, spent in ours.items():
        pairs = list(zip(spent, theirs, strict=True))
        print_row(
            "peers",
            name=name,
            peer=case.peer,
            variant=variant,
            options=[*case.ours, *_VARIANTS[variant]],
            samples=bench.samples,
            seq_len=bench.seq_len,
            cpu_seconds=[round(one.cpu_seconds, 1) for one in spent],
            cpu_seconds_of_peer=[round(one.cpu_seconds, 1) for one in theirs],
            ratio=median(one.cpu_seconds / other.cpu_seconds for one, other in pairs),
            weights_bytes=weights_bytes,
            peak_bytes=max(one.peak_bytes for one in spent),
            peak_bytes_of_peer=max(one.peak_bytes for one in theirs),
            peak_ratio=median(one.peak_bytes / other.peak_bytes for one, other in pairs),
            peer_versions=_peer_versions(bench),
            **agreement.get(variant, {}),
        )


def _agreement(work: Path, printed: str) -> dict[str, Any]:
    """How far ours is from what the authors' script printed and wrote."""
    report = json.loads((work / "ours" / "report.json").read_text())
    plan = json.loads((work / "ours" / "plan.json").read_text())
    lod = [100 * block["metrics"]["lod@5"] for block in report["blocks"]]
    density = {budget["block"]: budget["value"] for budget in plan["budgets"]}
    return {
        "lod_largest_difference_percent": _largest(lod, _printed(printed, "before adjustment")),
        "density_largest_difference": _largest(list(density.values()), _printed(printed, "after adjustment")),
        **_equal_positions(work, [budget["name"] for budget in plan["budgets"]]),
    }


def _printed(output: str, words: str) -> list[float]:
    """The numbers of the one list that follows these words."""
    found = re.search(re.escape(words) + r" +\[([^\]]*)\]", output)
    if found is None:
        raise RuntimeError(f"the authors' script printed no {words!r}")
    return [float(number) for number in re.findall(r"\d+\.\d+(?:e[+-]?\d+)?", found[1])]


def _largest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))


def _equal_positions(work: Path, names: Sequence[str]) -> dict[str, Any]:
    """Share of the weights that both keep or both remove: of all, and of each of the equal blocks."""
    by_block: dict[str, list[Tensor]] = {}
    for name in names:
        ours, theirs = (tensor_from_checkpoint(work / side, name) == 0 for side in ("ours", "theirs"))
        block = name.partition(".layers.")[2].partition(".")[0]
        by_block.setdefault(block, []).append((ours == theirs).flatten())
    shares = [torch.cat(same).double().mean() for same in by_block.values()]
    return {
        "equal_mask_positions": float(torch.stack(shares).mean()),
        "equal_mask_positions_by_block": [round(float(share), 5) for share in shares],
    }


def _peer_versions(bench: Bench) -> dict[str, Any]:
    """Of the peers' environment, and the commit of the authors' clone where it is one."""
    names = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    script = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    asked = subprocess.run([bench.peers_python, "-c", script], capture_output=True, text=True, check=True)
    commit = subprocess.run(
        ["git", "-C", bench.owl, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {**json.loads(asked.stdout), "OWL": commit.stdout.strip() or None}


if __name__ == "__main__":
    main()
