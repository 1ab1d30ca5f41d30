"""Work shared through a folder: one holder at a time, nothing lost whenever a process dies."""

import os
import subprocess
import sys
import threading
import time

import pytest

from align3r_jax.io.work_queue import WorkQueue


def _age(queue, name, number, seconds):
    """Makes a lease as old as if its process had been silent for so long, on another machine."""
    path = queue.folder / f"{name}.{number:04d}.lease"
    path.write_text(path.read_text().replace('"boot": "', '"boot": "other'))
    then = time.time() - seconds
    os.utime(path, (then, then))


def _dead_holder(folder, name, code=""):
    """A process that claims an item and dies without a word."""
    script = (
        "import os, sys; from align3r_jax.io.work_queue import WorkQueue\n"
        f"lease = WorkQueue({str(folder)!r}).claim({name!r})\n"
        f"{code}\nassert lease; os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9


def test_one_of_many_claimers_gets_an_item(tmp_path):
    queues = [WorkQueue(tmp_path) for _ in range(8)]
    together = threading.Barrier(len(queues))
    found = []

    def claim(queue):
        together.wait()
        found.append(queue.claim("a"))

    threads = [threading.Thread(target=claim, args=(queue,)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lease,) = [lease for lease in found if lease]
    assert all(queue.claim("a") is None for queue in queues)
    assert lease.finish({"status": "finished"})
    assert not lease.finish({"status": "again"})
    assert queues[0].outcome("a") == {"status": "finished", "recent": True}
    assert not any(queue.holders() for queue in queues)


def test_a_silent_process_loses_its_item_to_one_other(tmp_path):
    with WorkQueue(tmp_path, stale_after=60) as first, WorkQueue(tmp_path, 60) as second:
        lease = first.claim("a")
        _age(first, "a", 1, 50)
        assert second.claim("a") is None
        _age(first, "a", 1, 70)
        taken = second.claim("a")
        assert taken.number == 2 and taken.attempts == 1
        with WorkQueue(tmp_path, 60) as third:  # has seen the old lease only: number 2 is taken
            assert third._claim("a", 1) is None
        assert not lease.finish({"status": "late"}), "what is lost is not published"
        assert lease.lost
        assert taken.finish({"status": "finished"})
        assert first.outcome("a")["status"] == "finished"


def test_a_dead_process_of_this_machine_is_noticed_at_once(tmp_path):
    _dead_holder(tmp_path, "a")
    with WorkQueue(tmp_path) as queue:
        assert queue.holders() == {}
        lease = queue.claim("a")
        assert lease.attempts == 1
        lease.release()
        again = queue.claim("a")
        assert again.attempts == 1, "released, so nobody died since"


def test_a_crash_while_a_lease_is_written_is_waited_for(tmp_path):
    (tmp_path / "a.0001.lease").touch()
    with WorkQueue(tmp_path, stale_after=60) as queue:
        assert queue.claim("a") is None
        os.utime(tmp_path / "a.0001.lease", (0, 0))
        assert queue.claim("a").number == 2


def test_a_crash_between_result_and_outcome_loses_nothing(tmp_path):
    """The result is what counts: an item whose result is there is not worked on again."""
    _dead_holder(tmp_path / "q", "a", f"open({str(tmp_path / 'a.result')!r}, 'w')")
    _dead_holder(tmp_path / "q", "b")
    worked = []
    with WorkQueue(tmp_path / "q") as queue:
        done = lambda name: (tmp_path / f"{name}.result").exists()  # noqa: E731
        while (lease := queue.take(["a", "b", "c"], done, poll=0.01)) is not None:
            worked.append((lease.name, lease.attempts))
            (tmp_path / f"{lease.name}.result").touch()
            lease.finish({"status": "finished"})
    assert worked == [("b", 1), ("c", 0)]


def test_waiting_ends_when_others_are_done_or_dead(tmp_path):
    with WorkQueue(tmp_path) as busy, WorkQueue(tmp_path) as idle:
        held, dying = busy.claim("a"), busy.claim("b")
        finished = lambda name: idle.outcome(name) is not None  # noqa: E731
        found = []
        thread = threading.Thread(
            target=lambda: found.append(idle.take(["a", "b"], finished, poll=0.01))
        )
        thread.start()
        held.finish({})
        time.sleep(0.1)
        assert thread.is_alive(), "b may still come back"
        _age(busy, dying.name, 1, 1000)
        thread.join(timeout=30)
        assert found[0].name == "b" and found[0].attempts == 1
        found[0].finish({})
        assert idle.take(["a", "b"], finished) is None


def test_closing_releases_and_a_living_process_keeps_its_lease(tmp_path):
    with WorkQueue(tmp_path, stale_after=0.3) as queue, WorkQueue(tmp_path, 0.3) as other:
        lease = queue.claim("a")
        _age(queue, "a", 1, 0)
        time.sleep(0.8)
        assert other.claim("a") is None, "it gives signs of life"
        assert not lease.lost
    with WorkQueue(tmp_path) as later:
        assert later.claim("a").attempts == 0
        assert later.take(["x"], lambda name: True) is None


@pytest.mark.parametrize("name", ["a", "a.0001", "with.dots.mp4"])
def test_names_with_dots_are_kept_apart(tmp_path, name):
    with WorkQueue(tmp_path) as queue:
        lease = queue.claim(name)
        assert list(queue.holders()) == [name]
        assert lease.finish({}) and queue.claim(name).number == 2
