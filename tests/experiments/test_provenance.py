"""The command of a result is read back by a shell as it was typed; the commit is the checkout's."""

import shlex
import subprocess

import jax

from experiments import provenance


def test_the_command_survives_a_shell():
    arguments = ["--video=my clips/it's $HOME.mp4", "--overwrite", "--prior=files:a*"]
    found = provenance.describe("experiments.reconstruct", arguments)
    assert shlex.split(found["command"]) == ["python", "-m", "experiments.reconstruct", *arguments]
    echoed = subprocess.run(
        ["sh", "-c", "printf '%s\\n' " + found["command"]], capture_output=True, text=True
    )
    assert echoed.stdout.splitlines()[3:] == arguments
    assert found["software"]["jax"] == jax.__version__
    assert found["software"]["align3r_jax"][0].isdigit()


def test_other_programs_are_not_named_as_ours():
    found = provenance.of_this_process()  # pytest
    assert found["command"] is None and found["software"]["python"]


def test_the_revision_of_a_checkout_and_of_none(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True,
                              capture_output=True, text=True).stdout.strip()  # fmt: skip

    assert provenance.revision(tmp_path / "none") is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert provenance.revision(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert provenance.revision(tmp_path) == head + " + changes"
