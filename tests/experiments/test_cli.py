"""Exit codes and messages of the shared script runner."""

import subprocess
import sys
import textwrap
from logging import INFO, WARNING, LogRecord
from pathlib import Path

import jax
import pytest

from experiments import cli

ROOT = Path(__file__).parents[2]
SCRIPT = """
    from absl import flags
    from align3r_jax.errors import UserError
    from experiments import cli

    KIND = flags.DEFINE_string("kind", None, "what happens", required=True)
    MODE = flags.DEFINE_enum("mode", "flat", ["flat", "hierarchical"], "how")

    def main(argv):
        if KIND.value == "user":
            raise UserError("The video is empty; give another one.")
        if KIND.value == "disk":
            raise OSError(28, "No space left on device", "/full/scene.npz")
        if KIND.value == "interrupt":
            raise KeyboardInterrupt
        if KIND.value == "defect":
            raise RuntimeError("ours")
        return 1 if KIND.value == "above" else None

    if __name__ == "__main__":
        cli.run(main)
"""


def run_all(tmp_path, argument_lists):
    """Runs the script once per list of arguments, all at the same time."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        )
        for arguments in argument_lists
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors)]


def test_exit_codes_and_sentences(tmp_path):
    cases = {
        "--kind=fine": (0, ""),
        "--kind=above": (1, ""),
        "--kind=user": (2, "Error: The video is empty; give another one.\n"),
        "--kind=disk": (2, "Error: /full/scene.npz: No space left on device.\n"),
        "--kind=interrupt": (130, "Interrupted.\n"),
    }
    for (argument, expected), result in zip(
        cases.items(), run_all(tmp_path, [[a] for a in cases]), strict=True
    ):
        assert result == expected, argument


def test_flags_and_defects(tmp_path):
    unknown, value, missing, stray, defect = run_all(
        tmp_path,
        [
            ["--kind=fine", "--knid=x"], ["--kind=fine", "--mode=hierarchial"], ["my.mp4"],
            ["--kind=fine", "video.mp4"], ["--kind=defect"],
        ],
    )  # fmt: skip
    assert unknown[0] == 1
    assert "Unknown command line flag 'knid'. Did you mean: kind" in unknown[1]
    assert value[0] == 1
    assert "'hierarchial' of --mode is unknown. Did you mean 'hierarchical'?" in value[1]
    assert missing[0] == 1
    assert "--kind=... must be given. 'my.mp4' belongs to no flag." in missing[1]
    assert stray[0] == 2
    assert "'video.mp4'" in stray[1]
    assert defect[0] not in (0, 2)
    assert "RuntimeError: ours" in defect[1]


def test_libraries_are_quiet_and_we_are_heard():
    def passes(path, level):
        return cli._is_ours_or_important(LogRecord("absl", level, path, 1, "", (), None))

    assert not passes("/x/site-packages/orbax/checkpoint/handler.py", INFO)
    assert passes("/x/site-packages/orbax/checkpoint/handler.py", WARNING)
    assert passes("/x/site-packages/align3r_jax/stages.py", INFO)
    assert passes(str(ROOT / "align3r_jax" / "stages.py"), INFO)


@pytest.fixture
def restored_settings():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compile_cache_respects_the_environment(monkeypatch, tmp_path, restored_settings):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "align3r_jax" / "xla")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    cli.use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


def test_compile_cache_that_cannot_be_written_only_warns(
    monkeypatch, tmp_path, restored_settings, caplog
):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cli.use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert float(jax.jit(lambda x: 2 * x)(1.0)) == 2
    assert "every run compiles again. Set JAX_COMPILATION_CACHE_DIR" in caplog.text


def test_the_library_alone_leaves_the_settings_of_jax_as_they_are():
    for path in (ROOT / "align3r_jax").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "compilation_cache" not in text and "jax.config.update" not in text, path


def test_every_script_runs_by_the_shared_runner():
    """Errors as sentences and the compile cache come with it."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text and "DEFINE_" in text:
            assert "cli.run(main" in text, path
