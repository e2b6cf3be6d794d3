"""Runs Python source in a process of its own, where nothing of needle is loaded yet."""

import os
import subprocess
import sys


def run(source: str, **environment: str) -> str:
    """What it prints; an error in it is an error here."""
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()
