"""Allocators are pure numbers."""

import subprocess
import sys


def test_importing_the_allocators_loads_no_deep_learning_library():
    code = (
        "import sys, owl_compress.allocators as a\n"
        "for name in a.ALLOCATORS.names(): a.ALLOCATORS.load(name)\n"
        "print(sorted(m for m in ('torch', 'transformers', 'owl_compress.backends') if m in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
