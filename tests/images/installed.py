"""Print, as JSON, the packages that are installed in an image.

It runs inside the image, so it uses the standard library only.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import distributions

DPKG = ("dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n")


def main() -> None:
    """Print the packages of Python and of the distribution."""
    system = platform.freedesktop_os_release()
    python = {
        (found.metadata["Name"], found.version): found.metadata["License-Expression"]
        for found in distributions()
    }
    listed = subprocess.run(DPKG, capture_output=True, text=True, check=True).stdout
    found = {
        "distribution": system["ID"],
        "release": system["VERSION_CODENAME"],
        "python": [[name, version, license_] for (name, version), license_ in python.items()],
        "system": [line.split("\t") for line in listed.splitlines()],
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
