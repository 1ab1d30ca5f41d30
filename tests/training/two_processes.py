"""One of several processes of `tiny_run`.

python -m tests.training.two_processes FOLDER PORT COUNT RANK STEPS [STEP AT WHICH IT GETS SIGTERM]
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax

from align3r_jax.training import loop, partitioning, step
from tests.training import tiny_run


def main(folder: Path, port: int, count: int, rank: int, total: int, end: int) -> None:
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, rank)
    mesh = partitioning.make_mesh()
    abstract = jax.eval_shape(tiny_run.init_state)
    shardings = partitioning.state_shardings(mesh, abstract)
    rows = slice(rank * 8 // count, (rank + 1) * 8 // count)

    def batch_of(number):
        if number == end:
            os.kill(os.getpid(), signal.SIGTERM)
        if count > 1 and number >= 5:
            time.sleep(0.5)  # they agree on a step over seconds, as real steps take
        local = {name: array[rows] for name, array in tiny_run.batch_of(number).items()}
        return partitioning.global_batch(mesh, local)

    final = loop.run(
        settings=loop.LoopSettings(
            steps=total, batch_size=8, log_every=3, save_every=5, evaluate_every=4,
            tensorboard=False,
        ),
        start=jax.jit(tiny_run.init_state, out_shardings=shardings),
        abstract=abstract,
        step=step.make_step(
            tiny_run.loss, tiny_run.TX, 0.9, shardings, partitioning.batch_sharding(mesh)
        ),
        batch_of=batch_of,
        shardings=shardings,
        folder=folder,
        config={},
        evaluate=tiny_run.evaluate,
    )  # fmt: skip
    if count > 1:
        jax.distributed.shutdown()
    (folder / f"done_{rank}").write_text(str(int(final.step)))


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:]]
    main(Path(sys.argv[1]), *(numbers + [-1])[:5])
