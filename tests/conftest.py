"""What holds for every test."""

import os

# Tests run side by side: threads that wait for one another in each of them would only take turns. Before torch comes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
