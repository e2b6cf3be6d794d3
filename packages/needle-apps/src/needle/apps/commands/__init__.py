"""The `needle` command, a file a command; importing one adds it to `app`, in the order of help.

`base` holds the group, its errors and exit codes, `options` what several commands share.
"""

from needle.apps.commands import train  # isort: skip
from needle.apps.commands import evaluate  # isort: skip
from needle.apps.commands import predict  # isort: skip
from needle.apps.commands import generate  # isort: skip
from needle.apps.commands import runs  # isort: skip
from needle.apps.commands import data  # isort: skip
from needle.apps.commands import bench  # isort: skip
from needle.apps.commands import info  # isort: skip
from needle.apps.commands.base import app

__all__ = ["app", "bench", "data", "evaluate", "generate", "info", "predict", "runs", "train"]
