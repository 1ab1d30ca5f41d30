"""Global alignment as a function: feed it anybody's point maps, get one scene.

    python -m experiments.examples.01_align_your_own_point_maps

A rendered clip stands in for your video, and an oracle (truth plus noise, every pair in a scale of
its own) for your pairwise network. About a minute on two cores, most of it compilation.
"""

import align3r_jax
from align3r_jax import pairing
from align3r_jax.alignment import align, finish
from align3r_jax.evaluation import summary
from data.procedural import benchmark, clip, oracle


def main() -> dict[str, float]:
    """Returns the errors of the aligned scene against the truth."""
    video = benchmark.render("desk", frames=6, height=64, width=96, supersample=1)
    frames = clip.frames_of(video)

    # 1. Which pairs: (P, 2) frame numbers, both directions.
    graph = pairing.make_pairs(frames.num_frames, "swinstride-2-noncyclic")

    # 2. Your point maps: (P, H, W, 3) of both frames in the camera of the first, confidences > 1.
    predictor = oracle.OraclePredictor(video)
    predictions = predictor.predict(predictor.prepare(frames, None, None), graph)

    # 3. Optical flow is optional; with it moving things are masked and cameras get sharper.
    flow = clip.flow_between(video, pairing.directed_pairs(graph))

    # 4. One pure function of arrays (jit, vmap, shard it); then what its variables mean.
    config = align3r_jax.AlignmentConfig(iterations=100)
    priors = align3r_jax.AlignmentPriors(flow=flow)
    variables, trace = align3r_jax.align(predictions, graph, priors, config)
    result = align.result_of(predictions, graph, variables, trace)
    scene = finish.to_scene(result, frames, config)

    errors = summary.evaluate_scene(
        scene.depth, scene.world_from_cam, video.depth, video.world_from_cam
    )
    print(f"loss {scene.trace['total'][0]:.4f} -> {scene.trace['total'][-1]:.4f}")
    print(f"ATE {errors['ate']:.4f} m, a standing camera {errors['standing_ate']:.4f} m")
    print(f"depth Abs Rel {errors['abs_rel']:.4f}, a plane {errors['constant_abs_rel']:.4f}")
    return errors


if __name__ == "__main__":
    main()
