"""Exports: plans in the words of other tools, and theirs in ours; in pure numbers.

Adding a tool: a file with a frozen dataclass that follows the protocol `Exporter` or `Importer`, and a line
in a table of `tools`. Packages of others register theirs through the entry points `owl_compress.exporters`
and `owl_compress.importers`.
"""

from owl_compress.exports.contract import Exported, Exporter, Foreign, Importer
from owl_compress.exports.exporting import export
from owl_compress.exports.importing import plan_from
from owl_compress.exports.tools import EXPORTERS, IMPORTERS

__all__ = ["EXPORTERS", "IMPORTERS", "Exported", "Exporter", "Foreign", "Importer", "export", "plan_from"]
