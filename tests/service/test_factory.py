"""What a process has imported, and in which state it is, by the time it starts to load models."""

import subprocess
import sys

from tests.support import artifacts, processes


def printed(program: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_what_few_use_is_not_imported():
    """Ray, fsspec and OpenTelemetry belong to extras, and cost nothing where they are not asked for."""
    program = (
        "import sys\n"
        "import foldserve.service.command\n"
        "from foldserve.service.factory import build_app\n"
        "from foldserve.service.settings import Settings\n"
        "app = build_app(Settings(), None)\n"
        "extras = ('ray', 'fsspec', 'opentelemetry.sdk', 'opentelemetry.exporter')\n"
        "print(*[name for name in extras if name in sys.modules])\n"
    )
    assert printed(program) == []


def test_the_first_version_of_pydantic_is_not_imported_and_can_be():
    """FastAPI asks it about every route, and a service has none that uses it; whoever needs it has it afterwards."""
    program = (
        "import sys\n"
        "from foldserve.service.factory import build_app\n"
        "from foldserve.service.settings import Settings\n"
        "app = build_app(Settings(), None)\n"
        "print('pydantic.v1' in sys.modules, bool(app.openapi()['paths']))\n"
        "import warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from pydantic import v1\n"
        "print(v1.BaseModel.__name__)\n"
    )
    assert printed(program) == ["False", "True", "BaseModel"]


def test_neither_the_command_line_of_uvicorn_nor_masked_arrays_are_imported(fashion):
    """A start needs neither; whoever does has them afterwards as they always are."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from foldserve.service.factory import build_app\n"
        "from foldserve.service.settings import Settings\n"
        "from foldserve.service.artifacts.repository import Repository\n"
        "from foldserve.service.engines.load import choose_graph, load_engine\n"
        f"artifact = Repository(Path({str(fashion)!r})).open('fashion')\n"
        "load_engine(artifact, provider='cpu', chosen=choose_graph(artifact, (1, 8)), buckets=(1, 8))\n"
        "app = build_app(Settings(), None)\n"
        "from foldserve.service.processes.server import Server\n"
        "print(*[name for name in ('click', 'uvicorn.main', 'numpy.ma') if name in sys.modules])\n"
        "import uvicorn\n"
        "print(hasattr(uvicorn, 'run'), uvicorn.Server.__module__)\n"
        "from uvicorn.main import run, Server as same\n"
        "print(run.__name__, same is uvicorn.Server is Server.__mro__[1])\n"
    )
    assert printed(program) == ["False", "uvicorn.server", "run", "True"]


def test_what_describes_a_body_is_built_when_it_is_first_asked_for():
    """A start builds none of it, `/openapi.json` all of it; classes that are made later are as pydantic makes them."""
    program = (
        "from foldserve.service.factory import build_app\n"
        "from foldserve.service.settings import Settings\n"
        "app = build_app(Settings(), None)\n"
        "from foldserve.service.schemas import PredictResponse\n"
        "from pydantic import BaseModel\n"
        "print(PredictResponse.__pydantic_complete__, 'PredictResponse' in app.openapi()['components']['schemas'])\n"
        "print(type('Later', (BaseModel,), {}).__pydantic_complete__)\n"
    )
    assert printed(program) == ["False", "True", "True"]


def test_no_plugin_of_pydantic_is_looked_for(tmp_path):
    """What another distribution hooks into pydantic is neither searched nor run, unless an operator wants it."""
    facts = tmp_path / "hooked-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: hooked\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[pydantic]\nhooked = hooked:plugin\n")
    (tmp_path / "hooked.py").write_text(
        "print('hooked')\n"
        "class plugin:\n"
        "    new_schema_validator = staticmethod(lambda *given, **named: (None, None, None))\n"
    )
    command = [sys.executable, "-m", "foldserve", "serve", "--help"]
    environment = processes.environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "hooked" not in done.stdout
    environment["PYDANTIC_DISABLE_PLUGINS"] = "others"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("hooked\n")


def test_spans_without_the_extra_end_the_start_with_its_name(tmp_path):
    """One line, not a traceback; and an address that is none is refused before."""
    artifacts.publish_classifier(tmp_path)
    flags = ("--models-dir", str(tmp_path), "--otlp-endpoint")
    program = (
        "import runpy, sys\n"
        "sys.modules['opentelemetry.sdk'] = None\n"
        "sys.argv[0] = 'foldserve'\n"
        "runpy.run_module('service', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, "--port", "0", *flags, "http://127.0.0.1:4318"]
    done = subprocess.run(command, capture_output=True, text=True, env=processes.environment())
    assert done.returncode == 3
    assert "--otlp-endpoint needs the extra otel: pip install 'foldserve[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
    code, lines = processes.failed(*flags, "localhost:4318")
    assert (code, len(lines)) == (2, 1)
    assert "expected an address of HTTP, such as http://localhost:4318" in lines[0]


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


def test_an_application_that_cannot_be_made_ends_its_process_with_the_reason():
    """Exit code 3 is what the supervisor takes for a start that cannot be, and one line says why; it does not loop."""
    program = (
        "from pathlib import Path\n"
        "from foldserve.service.factory import build_app\n"
        "from foldserve.service.processes.workers import Workers\n"
        "from foldserve.service.settings import Settings\n"
        "build_app(Settings(), Workers(Path('/dev/null/shared')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "the start failed: [Errno 20] Not a directory: '/dev/null/shared/place-0'",
    ]
