"""How every command of foldserve ends; docs/commands.md has the same table."""

DONE = 0  # also a service that was told to end and has drained
FAILED = 1  # a proof, a check or a write failed, or the running service refused
USAGE = 2  # an argument, a setting, the data, the device or an extra that is not installed: the caller can mend it
START_FAILED = 3  # the service cannot start; uvicorn's own code for an application that did not start
HUNG = 4  # the service ended itself, since its event loop or a batch stood still
INTERRUPTED = 130  # Ctrl-C, as a shell reports it
