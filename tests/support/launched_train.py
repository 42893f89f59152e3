"""`python -m foldserve.training` on small made-up data; with DIES=RANK that rank is killed as its second epoch begins.

torchrun --standalone --nproc-per-node 3 -m tests.support.launched_train --epochs 2
"""

import dataclasses
import os
import signal
import sys

from foldserve.command import main
from foldserve.training import train_command
from foldserve.training.__main__ import words
from foldserve.training.epoch import EpochState
from foldserve.training.ranks import leave
from tests.training.conftest import made_up_data

DATA = dataclasses.replace(made_up_data(352), digests={"train-images-idx3-ubyte": "0" * 64})


def _dying(restart):
    def restart_or_die(self, seed, epoch):
        if epoch == 2 and os.environ["RANK"] == os.environ.get("DIES"):
            os.kill(os.getpid(), signal.SIGKILL)
        restart(self, seed, epoch)

    return restart_or_die


if __name__ == "__main__":
    train_command.load = lambda folder: DATA
    EpochState.restart = _dying(EpochState.restart)
    leave(main(words(sys.argv[1:])))
