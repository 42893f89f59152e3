"""What a process has imported, and in which state it is, by the time it starts to load models."""

import subprocess
import sys


def printed(program: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_an_application_is_built_with_the_collector_at_rest_and_no_threads_of_numpy():
    """What was imported is never looked at again, what comes later is, and numpy has made no threads."""
    program = (
        "import gc, os\n"
        "for name in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS'):\n"
        "    os.environ.pop(name, None)\n"
        "from foldserve.service.factory import build_app\n"
        "from foldserve.service.settings import Settings\n"
        "runs = []\n"
        "gc.callbacks.append(lambda phase, info: runs.append(phase))\n"
        "before = len(runs)\n"
        "app = build_app(Settings(), None)\n"
        "print(len(runs) - before, gc.isenabled(), gc.get_freeze_count() > 50_000)\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    lone = (
        "import os\n"
        "os.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
        "import onnxruntime\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    assert printed(program) == ["0", "True", "True", *printed(lone)]
