"""Structure and motion of a whole clip from optical flow alone: robust bundle adjustment.

Minimised over poses, one focal length and the inverse depth of every lattice pixel:

    sum_(i,j,p) w_ijp c^2 log(1 + |q_ijp - target_ijp|^2 / c^2)
        + lambda_d sum_ip (log rho_ip - prior_ip)^2 + lambda_f (log f / f0)^2

with q_ijp where pixel p of frame i lands in frame j (`flow_lattice`). Gauss-Newton on reweighted
residuals with Levenberg's damping (`flow_normal`).
"""

from __future__ import annotations

import numpy as np

from align3r_jax.predictors import flow_lattice, flow_normal
from align3r_jax.predictors.flow_lattice import Observations, Structure, project, squared_length
from align3r_jax.predictors.flow_normal import BundleConfig


def cost(structure: Structure, obs: Observations, prior: np.ndarray, config: BundleConfig) -> float:
    """The minimised cost per unit of observation weight. prior: (T, P) log inverse depth."""
    c2 = config.scale_px**2
    flow = 0.0
    for part in flow_lattice.blocks(obs):
        squared = squared_length(project(structure, obs, part)[1] - obs.target[part])
        flow += float((obs.weight[part] * np.log1p(squared / c2)).sum()) * c2
    depth = float(np.square(structure.log_rho - prior).mean())
    focal = np.log(structure.focal / config.focal_prior) ** 2
    total = max(float(obs.weight.sum()), 1.0)
    return flow / total + config.depth_weight * depth + config.focal_weight * focal


def bundle(
    structure: Structure, obs: Observations, prior: np.ndarray, config: BundleConfig
) -> tuple[Structure, float]:
    """Refines a start. prior: (T, P) log inverse depth. Returns the structure and its cost."""
    current = cost(structure, obs, prior, config)
    damping = 1e-3
    for _ in range(config.iterations):
        system = flow_normal.linearise(structure, obs, prior, config)
        for _ in range(5):
            trial = flow_normal.step(structure, obs, system, damping, config)
            value = np.inf if trial is None else cost(trial, obs, prior, config)
            if trial is not None and value < current:
                break
            damping *= 8
        else:
            break
        gain = current - value
        assert trial is not None  # the loop above ended on a better one
        structure, current = trial, value
        damping = max(damping / 4, 1e-7)
        if gain < config.tolerance * current:
            break
    return structure, current
