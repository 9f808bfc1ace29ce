#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The step of every DIR by the model that its recipe asks for, each in a process of its own: loading torch takes longer than using it, and is done once.  Arguments: one DIR or more.
Exit status 77: no torch here.
"""
import os
import sys

try:
    import reference_files
except ModuleNotFoundError as e:
    sys.exit(77 if e.name == "torch" else str(e))

for folder in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        reference_files.take(folder)
        if reference_files.config["recipe"] == "fp32":
            import reference  # noqa: F401
        else:
            import fp8_reference  # noqa: F401
        sys.exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(1)
