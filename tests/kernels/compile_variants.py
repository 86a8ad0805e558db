"""Compiles the kernels as they are launched; prints what the compiler made of them, as JSON.

Run by test_compiles.py in a process of its own: a failing compiler may take its process along. The
one argument is the compute capability. Each variants_*.py beside this file has a function
`variants(capability)`: by name, what a kernel needs and whether it must use the tensor cores.
"""

import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path


def main() -> None:
    capability = int(sys.argv[1])
    printable = {}
    for path in sorted(Path(__file__).parent.glob("variants_*.py")):
        made = runpy.run_path(str(path))["variants"](capability)
        for name, (resources, tensor_cores) in made.items():
            facts = {"opcodes": sorted(resources.opcodes), "tensor_cores": tensor_cores}
            printable[name] = asdict(resources) | facts
    print(json.dumps(printable))


if __name__ == "__main__":
    main()
