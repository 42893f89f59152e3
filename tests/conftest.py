"""What holds for every test."""

import os
import signal

from hypothesis import HealthCheck, settings

# Tests run side by side: threads that wait for one another in each of them would only take turns. Before torch comes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before onnxruntime comes: it would send events to its maker, from each test's process.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A shell that starts us in the background has SIGINT ignored, and every child of ours would inherit that: tests that
# send one would then test nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes, or is drawn, says how busy the machine is.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
