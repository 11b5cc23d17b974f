"""One block compressed by several processes: each solves some of its linears, and all have all of them."""

from collections.abc import Sequence
from dataclasses import replace

from owl_compress.compression.contract import Backend
from owl_compress.compression.demands import solves_apart
from owl_compress.compression.tasks import BlockTask, LinearOutcome
from owl_compress.walk.ranks import Ranks


def solve_together_(backend: Backend, task: BlockTask) -> Sequence[LinearOutcome]:
    """Compress the block of `task` in every process that has joined: the same weights to the bit in each.

    Where the backend says that groups of linears are solved apart (`solves_groups_apart`), each process
    solves every so-manieth group and hands it on; else each solves all, and takes what the first one found.
    """
    ranks = Ranks.current()
    if ranks.of == 1:
        return backend.compress_block_(task)
    is_apart = solves_apart(backend) and len(task.groups) > 1
    owners = {index: index % ranks.of if is_apart else 0 for index in range(len(task.groups))}
    mine = [group for index, group in enumerate(task.groups) if not is_apart or owners[index] == ranks.rank]
    outcomes = backend.compress_block_(replace(task, groups=tuple(mine))) if mine else ()
    for index, group in enumerate(task.groups):
        ranks.spread_([one.site.module.get_parameter("weight").data for one in group.linears], owners[index])
        biases = (getattr(one.site.module, "bias", None) for one in group.linears)
        ranks.spread_([bias.data for bias in biases if bias is not None], owners[index])
    found = ranks.gathered(tuple(outcomes))
    if not is_apart:
        return found[0]
    by_name = {outcome.name: outcome for share in found for outcome in share}
    return [by_name[one.site.name] for group in task.groups for one in group.linears]
