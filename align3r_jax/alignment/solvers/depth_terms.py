"""First and second derivatives of the terms on depth alone, for solvers of second order."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align3r_jax.alignment.objective import Problem
from align3r_jax.alignment.terms import depth_prior, prior_depth
from align3r_jax.config import AlignmentConfig

Array = jax.Array

SMALLEST_PRIOR_ERROR = 1e-3  # of ln depth against a depth prior; smaller errors count as this


def are_present(problem: Problem, config: AlignmentConfig) -> bool:
    """Whether the objective has such a term."""
    return config.depth_regulariser_weight > 0 or problem.depth_prior is not None


def forces(log_depth: Array, problem: Problem, config: AlignmentConfig) -> tuple[Array, Array]:
    """Returns second and first derivatives by ln depth, (T, L) each.

    Both terms compare a frame with another depth up to a factor e^c. The second derivative is that
    at fixed c; the minimum over c is at the prior's median, and at the regulariser's mean where all
    pixels weigh the same (where not, a free c bounds the term from below). log_depth: (T, L).
    """
    frames, pixels = log_depth.shape
    count = jnp.asarray(frames, log_depth.dtype)
    if problem.frame_valid is not None:
        count = jnp.maximum(jnp.sum(problem.frame_valid), 1)
    share = 1 / (count * pixels)
    stiffness, force = jnp.zeros_like(log_depth), jnp.zeros_like(log_depth)
    if config.depth_regulariser_weight > 0:
        smallest = depth_prior.LOG_SMALLEST
        change = jnp.maximum(log_depth, smallest)
        change = change - jnp.maximum(problem.initial_log_depth, smallest)
        change = change - jnp.mean(change, axis=1, keepdims=True)
        weight = jnp.where(problem.dynamic, depth_prior.DYNAMIC_WEIGHT, 1.0)
        weight = weight * 2 * config.depth_regulariser_weight * share
        pull = weight * change
        moves = log_depth > smallest
        stiffness += jnp.where(moves, weight, 0)
        force += jnp.where(moves, pull - jnp.mean(pull, axis=1, keepdims=True), 0)
    prior = problem.depth_prior
    if prior is not None:
        scale = prior_depth.frame_log_scales(log_depth, prior)
        error = log_depth - prior.log_depth - scale[:, None]
        slope = config.depth_prior_weight * share * prior.weight
        slope = slope / jnp.maximum(jnp.abs(error), SMALLEST_PRIOR_ERROR)
        stiffness, force = stiffness + slope, force + slope * error
    if problem.frame_valid is not None:
        counts = problem.frame_valid[:, None] > 0
        stiffness, force = jnp.where(counts, stiffness, 0), jnp.where(counts, force, 0)
    return stiffness, force
