"""Which predictor runs, and what is said when weights, prior and flow cannot work together."""

import numpy as np
import pytest

from align3r_jax.config import NETWORK_PRESETS, FlowConfig, ReconstructConfig
from align3r_jax.errors import UserError
from align3r_jax.predictors import choose
from align3r_jax.priors import optical_flow
from align3r_jax.structs import DepthPrior
from align3r_jax.weights.store import LoadedNetwork

PLANE = DepthPrior(np.ones((2, 16, 16)), np.ones((2, 16, 16)), None, "plane")


def _model(preset):
    return LoadedNetwork(NETWORK_PRESETS[preset], {}, preset, "0" * 64, {})


def _choose(model=None, prior=None, **settings):
    config = ReconstructConfig(**settings)
    flow = None if config.flow.source == "none" else optical_flow.DisFlow(config.flow)
    return choose.make_predictor(config, model, prior, flow, lambda said: None)


def test_auto_takes_the_network_if_there_is_one():
    assert _choose(None, PLANE).name == "flow"
    assert _choose(_model("tiny_align3r"), PLANE).name == "tiny_align3r"
    assert _choose(_model("tiny_dust3r_dpt"), None).name == "tiny_dust3r_dpt"


@pytest.mark.parametrize(
    ("model", "prior", "settings", "sentence"),
    [
        ("tiny_dust3r_dpt", PLANE, {}, "no prior branch"),
        ("tiny_align3r", None, {}, "needs a depth prior"),
        (None, PLANE, {"predictor": "network"}, "needs weights"),
        ("tiny_align3r", PLANE, {"predictor": "flow"}, "uses no weights"),
        (None, PLANE, {"flow": FlowConfig(source="none")}, "needs optical flow"),
    ],
)
def test_what_cannot_work_gets_a_sentence(model, prior, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        _choose(model and _model(model), prior, **settings)
