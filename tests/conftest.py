"""Shared fixtures: the golden folder, one CPU backend, a compile cache, absl flags parsed."""

import gc
import importlib.util
import os
from pathlib import Path

import jax
import pytest
from absl import flags

jax.config.update("jax_platforms", os.environ.get("ALIGN3R_TEST_PLATFORM", "cpu"))
_GOLDEN = Path(__file__).parent / "golden"
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR")
if _CACHE:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        default=str(_GOLDEN),
        help="folder of golden files (same names and formats as tests/golden)",
    )


def pytest_configure(config):
    # The default suite spends most of its time compiling what then runs for moments.
    default = not config.option.markexpr and Path(config.getoption("--golden")) == _GOLDEN
    jax.config.update("jax_disable_most_optimizations", default)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"], known_only=True)


_ON_REQUEST = ("slow", "peer")  # markers of tests that run only when -m asks for them


def pytest_collection_modifyitems(config, items):
    """Slow and peer tests run only when the -m expression asks for them."""
    unasked = [mark for mark in _ON_REQUEST if mark not in (config.option.markexpr or "")]
    deselected = [item for item in items if any(mark in item.keywords for mark in unasked)]
    # One named explicitly on the command line (file::test) is run.
    if not deselected or any("::" in argument for argument in config.args):
        return
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]


_MAPS = Path("/proc/self/maps")
_MANY = 20_000  # Linux allows a process 65,530 of them; a compiled program takes about ten


def pytest_runtest_teardown(item, nextitem):
    """Between modules, compiled programs are forgotten before their memory maps run out."""
    if nextitem is not None and nextitem.path == item.path:
        return
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def optimised():
    """Programs of a module are compiled as users have them: for runs that rounding drives apart."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    """The folder of golden files in use (`--golden=DIR`)."""
    return Path(request.config.getoption("--golden"))


@pytest.fixture(scope="session")
def golden_weights(golden_dir):
    """The module that fills parameters and images deterministically (`weights.py`)."""
    path = golden_dir / "weights.py"
    if not path.exists():
        path = Path(__file__).parent / "golden" / "weights.py"
    spec = importlib.util.spec_from_file_location("golden_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
