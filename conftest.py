"""One thread for each test process: pytest-xdist already keeps every core busy."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
