"""Curves of training runs: what is drawn, means, time over interruptions, and refusals."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.experiments.test_convert_weights import run_cases


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, scale in (("one", 1.0), ("two", 2.0)):
        (root / name).mkdir()
        lines = [
            {"step": 10 * k, "loss": scale * (1 + 1 / k), "seconds": 5.0 * (k if k < 4 else k - 3)}
            for k in range(1, 7)
        ]
        lines[3]["eval/unseen/loss"] = 3 * scale
        lines[5]["eval/unseen/loss"] = 2 * scale
        text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 70, "lo'
        (root / name / "metrics.jsonl").write_text(text)
    both = f"--runs={root}/one,{root}/two"
    cases = {
        "two": [both, "--keys=loss,eval/unseen/loss", f"--output={root}/new/a.svg"],
        "seconds": [f"--runs={root}/one", "--against=seconds", f"--output={root}/b.svg"],
        "means": [both, "--smooth=4", "--from_step=20", f"--output={root}/c.svg"],
        "key": [both, "--keys=lss", f"--output={root}/d.svg"],
        "run": [f"--runs={root}/three", f"--output={root}/d.svg"],
        "picture": [both, f"--output={root}/d.png"],
    }
    return root, dict(zip(cases, run_cases("plot_training", list(cases.values()))))


def test_every_key_of_every_run_is_a_named_curve(runs):
    root, done = runs
    code, said, _ = done["two"]
    assert code == 0 and "two eval/unseen/loss: 4 at step 60" in said
    picture = ElementTree.parse(root / "new" / "a.svg").getroot()
    texts = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"one loss", "two loss", "one eval/unseen/loss", "step"} <= texts
    # As many points as values, an unfinished last line left out.
    curves = [path.get("d") for path in picture.iter("{http://www.w3.org/2000/svg}path")
              if "L" in (path.get("d") or "")]  # fmt: skip
    assert [len(re.findall("[ML]", curve)) for curve in curves] == [6, 2, 6, 2]


def test_time_goes_on_over_an_interruption(runs):
    _, done = runs
    assert "loss: 1.1667 at seconds 30" in done["seconds"][1]


def test_means_take_what_is_left_over(runs):
    _, done = runs
    last = float(re.search(r"two: ([\d.]+) at step 60", done["means"][1])[1])
    np.testing.assert_allclose(last, 2 * (1 + 1 / 6), rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "says"),
    [("key", "has no 'lss'; it has eval/unseen/loss, loss"), ("run", "no logged step from 0 on"),
     ("picture", "end its name in .svg")],
)  # fmt: skip
def test_refusals(runs, case, says):
    root, done = runs
    code, _, error = done[case]
    assert code and says in error
    assert not (root / "d.svg").exists()
