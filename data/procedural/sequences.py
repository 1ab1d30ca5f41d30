"""The procedural benchmark as sequences of a data set: the same protocols, nothing to download."""

from __future__ import annotations

from pathlib import Path

from align3r_jax.errors import UserError
from data.procedural import benchmark
from data.readers.sequence import EvaluationSequence, ReaderOptions

NAME = "procedural"


def names(options: ReaderOptions = ReaderOptions()) -> list[str]:
    """The clips asked for. Raises UserError for unknown ones."""
    wanted = options.sequences
    if isinstance(wanted, str):
        if wanted not in ("default", "found"):
            raise UserError(
                f"The procedural benchmark has no list of sequences '{wanted}'; name clips: "
                f"{', '.join(benchmark.names())}."
            )
        return list(benchmark.names())
    unknown = sorted(set(wanted) - set(benchmark.names()))
    if unknown:
        raise UserError(f"Unknown clips {unknown}; known are {', '.join(benchmark.names())}.")
    return list(wanted)


def render(
    name: str,
    options: ReaderOptions = ReaderOptions(),
    *,
    size: tuple[int, int] = (benchmark.HEIGHT, benchmark.WIDTH),
) -> EvaluationSequence:
    """Renders one clip at size (H, W), with the frames that the options take of it."""
    clip = benchmark.render(name, height=size[0], width=size[1])
    start, stride = options.start or 0, options.stride or 1
    taken = range(clip.num_frames)[start::stride][: options.max_frames or None]
    if len(taken) == 0:
        raise UserError(f"start={start} leaves none of the {clip.num_frames} frames of '{name}'.")
    chosen = list(taken)
    pictures = tuple(Path(f"{name}/frame_{k:04d}") for k in chosen)
    by_path = {path: clip.images[k] for path, k in zip(pictures, chosen)}
    return EvaluationSequence(
        name,
        NAME,
        pictures,
        clip.images.shape[1:3],
        times=clip.times[chosen],
        depth=lambda: clip.depth[chosen],
        world_from_cam=clip.world_from_cam[chosen].astype("float64"),
        intrinsics=clip.intrinsics[chosen].astype("float64"),
        dynamic_mask=lambda: clip.dynamic_mask[chosen],
        load_image=lambda path: by_path[path],
        notes=(f"Procedural benchmark, version {benchmark.VERSION}.",),
    ).check()
