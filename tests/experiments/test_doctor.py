"""The doctor's findings: what is here, what is missing, and what it says to do about it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from safetensors import numpy as safetensors_numpy

import experiments
from align3r_jax.weights import published
from experiments import doctor, doctor_checks, doctor_packages, doctor_weights
from tests.weights import tiny_networks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def findings():
    return doctor.examine()


def named(findings, name):
    (found,) = [f for f in findings if f.name == name]
    return found


def test_a_machine_that_runs_these_tests_is_well(findings, capsys):
    broken = [f for f in findings if f.state == doctor_packages.BROKEN]
    assert broken == []
    assert "can run here" in doctor.verdict(findings)
    for name in ("python", "jax", "opencv-python-headless", "cores", "memory", "disk",
                 "computation", "H.264 in", "H.264 out", "align3r_small"):  # fmt: skip
        assert named(findings, name).state in ("ok", "note"), name
    assert named(findings, "jax").text.startswith(jax.__version__)
    assert named(findings, "cpu").facts["count"] == len(jax.devices())
    assert named(findings, "H.264 in").facts == {"width": 320, "height": 240}
    assert named(findings, "computation").facts["relative_error"] < 1e-5
    text = doctor.as_text(findings)
    for found in findings:
        assert found.text in text and found.advice in text


def test_exit_code_and_json(findings, capsys, monkeypatch):
    sick = doctor_packages.Finding(
        "Devices", "jax", doctor_packages.BROKEN, "no device", "Mend it."
    )
    monkeypatch.setattr(doctor, "examine", lambda: [*findings, sick])
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    monkeypatch.setattr(flags.FLAGS, "json", True)
    assert doctor.main([]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["can_run"] is False
    assert content["verdict"] == "The main command cannot run here: jax (no device). Mend it."
    assert content["findings"][-1] == dataclasses.asdict(sick)
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert doctor.main([]) == 0
    assert json.loads(capsys.readouterr().out)["can_run"] is True


def test_without_the_packages_it_says_so_instead_of_failing(tmp_path):
    # -S: no site-packages, so nothing that is installed can be imported.
    result = subprocess.run(
        [sys.executable, "-S", "-m", "experiments.doctor"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    assert "jax" in result.stderr and "make venv" in result.stderr
    assert "Traceback" not in result.stderr and not result.stdout


def test_packages_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "experiments.doctor_checks", None)
    monkeypatch.delattr(experiments, "doctor_checks")
    findings = doctor.examine()
    assert findings[-1].name == "imports" and findings[-1].state == doctor_packages.BROKEN
    assert "requirements.txt" in doctor.verdict(findings)


def test_ranges_and_purposes(tmp_path):
    allows = doctor_packages.allows
    assert allows(">=0.10.2,<0.12", "0.10.2") and allows(">=0.10.2,<0.12", "0.11.9.dev3")
    assert not allows(">=0.10.2,<0.12", "0.12") and not allows(">=0.10.2,<0.12", "0.9.10")
    assert allows(">=2", "2.0") and allows("==1.0", "1.0.0") and allows("", "3")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=99", "no_such_thing>=1"]\n'
        '[project.optional-dependencies]\nfun = ["No.Such-toy>=2,<3"]\n'
    )
    (tmp_path / "requirements.txt").write_text(
        "numpy==99.0  # host arrays\nno-such-thing==1.0  # magic\nno_such_toy==2.1  # play\n"
    )
    _, numpy, thing, toy = doctor_packages.packages(tmp_path)
    assert numpy.state == "note" and numpy.text == f"{np.__version__}: host arrays"
    assert thing.state == "broken" and thing.text == "missing: magic"
    assert toy.state == "absent" and toy.text == "not here: play"
    assert toy.advice == 'python -m pip install "No.Such-toy>=2,<3"'


def test_every_dependency_has_a_purpose():
    for found in doctor_packages.packages()[1:]:
        assert found.facts["purpose"], f"requirements.txt does not say what {found.name} is for"


def test_an_accelerator_that_is_not_used(monkeypatch):
    monkeypatch.setattr(doctor_checks.shutil, "which", lambda program: "/usr/bin/" + program)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (found,) = [f for f in doctor_checks.devices() if f.name == "nvidia"]
    assert found.state == "note" and f"jax[cuda12]=={jax.__version__}" in found.advice
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (found,) = [f for f in doctor_checks.devices() if f.name == "nvidia"]
    assert "Unset JAX_PLATFORMS" in found.advice


def test_no_device_and_no_codec(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(doctor_checks.jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    (found,) = doctor_checks.devices()
    assert found.state == "broken" and "JAX_PLATFORMS is cuda" in found.advice
    assert doctor_checks.computations() == []
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    assert doctor_checks.codecs(bad)[0].state == "broken"
    assert doctor_checks.codecs(tmp_path / "absent.mp4")[0].state == "note"


def test_weights_that_are_here(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setenv(published.SEARCH_VARIABLE, str(mine))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiny_networks.write_pth(mine / "raft-things.pth", "raft")
    (mine / "depth_pro.pt").write_text("<html>not found</html>")
    state = dict(tiny_networks.state("depth_anything"))
    safetensors_numpy.save_file(state, mine / "sea_raft.safetensors")
    whole = (mine / "raft-things.pth").read_bytes()
    (mine / "depth_anything_v2_vits.pth").write_bytes(whole[: len(whole) // 2])
    rows = doctor_weights.weights()

    assert "expected" in named(rows, "raft").text  # a toy is no RAFT of 21 MB
    assert "web page" in named(rows, "depth_pro").text
    assert "it holds a depth network, Depth Anything V2" in named(rows, "sea_raft").text
    assert "truncated" in named(rows, "depth_anything_v2_small").text
    for name in ("raft", "depth_pro", "sea_raft", "depth_anything_v2_small"):
        assert named(rows, name).state == "note", name
    absent = named(rows, "depth_anything_v2_metric_indoor_large")
    assert absent.state == "absent"
    for part in ("1.3 GB", "CC BY-NC 4.0"):
        assert part in absent.text
    for part in ("hypersim_vitl.pth", f"--output={mine}", "--preset=depth_anything_v2_metric_ind"):
        assert part in absent.advice


def test_converted_weights_are_named_with_their_flag(tmp_path, monkeypatch):
    from align3r_jax.weights import store

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(published.SEARCH_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    params, config = tiny_networks.params("raft"), tiny_networks.CONFIGS["raft"]
    store.save(tmp_path / "weights" / "my_flow", params, config)
    rows = doctor_weights.weights()
    mine = named(rows, "my_flow")
    assert mine.state == "ok" and mine.advice == "--flow=raft --flow_weights=weights/my_flow"
    (tmp_path / "weights" / "my_flow" / "parameters" / "_METADATA").unlink(missing_ok=True)
    for file in (tmp_path / "weights" / "my_flow" / "parameters").rglob("*"):
        if file.is_file():
            file.unlink()
    broken = named(doctor_weights.weights(), "my_flow")
    assert broken.state == "note" and "lack the file" in broken.text


def test_sizes_are_those_of_the_pages():
    page = (ROOT / "docs" / "weights.md").read_text()
    counts = {
        "small": "24,785,089", "base": "97,470,785", "large": "335,315,649",
        "depth_pro": "951,991,330", "raft": "5,257,536", "sea_raft": "19,663,876",
    }  # fmt: skip
    for name, entry in published.PUBLISHED.items():
        text = counts[name if name in counts else name.rpartition("_")[2]]
        assert text in page
        width = 2 if name == "depth_pro" else 4  # bytes of a parameter
        assert entry.megabytes == round(int(text.replace(",", "")) * width / 1e6), name
    for entry in published.PAIRWISE.values():
        assert entry.files[0].partition("_ViT")[0] in page
