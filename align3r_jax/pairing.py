"""Which pairs of frames are predicted: graphs by name, clips, spanning trees.

Host side and NumPy only: graphs shape the computation. Names are those of DUSt3R's scene graphs
(`complete`, `swin-5-noncyclic`, `oneref-0`, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array, csgraph

from align3r_jax.config import PairConfig
from align3r_jax.errors import UserError
from align3r_jax.structs import PairGraph

_DEFAULT_WINDOW = 3
_KEY_FRAME_LEVELS = 4  # of a long video: key frames 1, 2, 4 and 8 apart meet

# Offsets d of the pairs (i, i + d) for a window w.
_WINDOWS: dict[str, Callable[[int], list[int]]] = {
    "swin": lambda w: list(range(1, w + 1)),
    "swinstride": lambda w: list(range(1, 2 * w, 2)),
    "swin2stride": lambda w: list(range(1, 3 * w, 3)),
    "logwin": lambda w: [2**k for k in range(w)],
}


def make_pairs(
    num_frames: int,
    graph: PairConfig | str = "complete",
    *,
    symmetrize: bool = True,
    prefilter: str | None = None,
) -> PairGraph:
    """Builds the pair graph of one run of frames.

    Args:
        num_frames: T >= 2.
        graph: a name, or a PairConfig (whose `symmetrize` then counts). `complete`; windows
            `swin-w`, `swinstride-w`, `swin2stride-w`, `logwin-w`, each with or without
            `-noncyclic`; `oneref-r`. A missing or unreadable w is 3, a missing r is 0.
        symmetrize: append every pair reversed, in the same order.
        prefilter: `seqN` keeps |i - j| <= N; `cycN` the cyclic distance.

    Raises:
        UserError: unknown name, too few frames, or a graph that leaves frames unconnected.
    """
    if isinstance(graph, PairConfig):
        symmetrize, graph = graph.symmetrize, graph.graph
    if num_frames < 2:
        raise UserError(
            f"A pair graph needs at least 2 frames, got {num_frames}. Give a longer video, a "
            "smaller stride or a larger range of frames."
        )
    pairs = _named_pairs(num_frames, graph)
    name = graph
    if prefilter:
        pairs = _prefiltered(pairs, num_frames, prefilter)
        name = f"{graph}+{prefilter}"
    return from_pairs(pairs, num_frames, symmetrize=symmetrize, name=name)


def from_pairs(
    pairs: Iterable[tuple[int, int]], num_frames: int, *, symmetrize: bool, name: str
) -> PairGraph:
    """Wraps a list of pairs (i, j), i != j. Raises UserError if they leave frames unconnected."""
    array = np.array(list(pairs), np.int32).reshape(-1, 2)
    if symmetrize:
        array = np.concatenate([array, array[:, ::-1]])
    if not is_connected(array, num_frames):
        raise UserError(
            f"The pair graph '{name}' does not connect all {num_frames} frames "
            f"({len(array)} pairs), so they cannot be put into one scene. Use a wider window, "
            "for example 'swinstride-5-noncyclic', or 'complete'."
        )
    return PairGraph(pairs=array, num_frames=num_frames, symmetric=symmetrize, name=name)


def is_connected(pairs: np.ndarray, num_frames: int) -> bool:
    """True if every frame can be reached from every other, directions ignored."""
    return not components(pairs, num_frames).any()


def components(pairs: np.ndarray, num_frames: int) -> np.ndarray:
    """Returns (num_frames,) int: frames that can reach each other have the same number, from 0."""
    pairs = np.asarray(pairs).reshape(-1, 2)
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (num_frames, num_frames))
    return csgraph.connected_components(links, directed=False)[1]


def spanning_tree(scores: np.ndarray, pairs: np.ndarray, num_frames: int) -> np.ndarray:
    """The spanning tree of largest total score (Kruskal), directions ignored but kept.

    Equal scores: the smaller (i, j) first, as SciPy's `minimum_spanning_tree` on -score does.

    Args:
        scores: (P,). pairs: (P, 2).

    Returns:
        (num_frames - 1,) indices into `pairs`, best first.
    """
    scores, pairs = np.asarray(scores), np.asarray(pairs)
    root = np.arange(num_frames)

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    chosen = []
    for k in np.lexsort((pairs[:, 1], pairs[:, 0], -scores)):
        first, second = find(pairs[k, 0]), find(pairs[k, 1])
        if first != second:
            root[first] = second
            chosen.append(k)
    if len(chosen) != num_frames - 1:
        raise ValueError(f"The graph does not connect its {num_frames} frames.")
    return np.array(chosen, np.int32)


def directed_pairs(graph: PairGraph) -> np.ndarray:
    """Returns (D, 2) int32, sorted: every pair of the graph in both directions, each once."""
    both = np.concatenate([graph.pairs, graph.pairs[:, ::-1]])
    return np.unique(both, axis=0).astype(np.int32)


def clip_size(num_frames: int, start: int) -> int:
    """Length of the clips of a long video: `start`, lowered until the last clip has >= 2 frames.

    Lowered by 1 while num_frames mod S is 0 or 1, or S > num_frames. With up to four frames the
    rule finds nothing and there is one clip.
    """
    size = start
    while size > 1 and (size > num_frames or num_frames % size in (0, 1)):
        size -= 1
    return size if size > 1 else num_frames


def clips(num_frames: int, size: int) -> tuple[range, ...]:
    """Consecutive runs of `size` frames; the first frame of each is its key frame."""
    return tuple(
        range(first, min(first + size, num_frames)) for first in range(0, num_frames, size)
    )


def key_frame_graph(num_key_frames: int, symmetric: bool, max_complete: int = 0) -> PairGraph:
    """Pairs i < j of the key frames, numbered from 0, appended reversed if `symmetric`.

    All pairs; of more than `max_complete` key frames (0: no limit) those with j - i = 1, 2, 4, 8,
    so that the graph grows linearly with the video.
    """
    if max_complete <= 0 or num_key_frames <= max_complete:
        return _upper_pairs(num_key_frames, 1, symmetric, "key frames")
    pairs = _window_pairs(num_key_frames, _WINDOWS["logwin"](_KEY_FRAME_LEVELS), cyclic=False)
    return from_pairs(pairs, num_key_frames, symmetrize=symmetric, name="key frames")


def border_pairs(runs: Sequence[range], reach: int = 2) -> np.ndarray:
    """Returns (B, 2) int32 pairs (i, j) and, after them, (j, i) across the borders of clips.

    Every one of the last `reach` frames of a clip meets the first `reach` frames of the next.
    """
    pairs = [
        (i, j)
        for before, after in zip(runs[:-1], runs[1:])
        for i in before[-reach:]
        for j in after[:reach]
    ]
    array = np.array(pairs, np.int32).reshape(-1, 2)
    return np.concatenate([array, array[:, ::-1]])


def clip_graph(num_frames: int, symmetric: bool) -> PairGraph:
    """Pairs inside one clip, numbered from 0.

    symmetric: (i, i + 1), (i, i + 3), (i, i + 5), ... and all of them reversed; else all i < j.
    """
    return _upper_pairs(num_frames, 2 if symmetric else 1, symmetric, "clip")


def _upper_pairs(num_frames: int, step: int, symmetric: bool, name: str) -> PairGraph:
    pairs = [(i, j) for i in range(num_frames) for j in range(i + 1, num_frames, step)]
    return from_pairs(pairs, num_frames, symmetrize=symmetric, name=name)


def _named_pairs(num_frames: int, graph: str) -> list[tuple[int, int]]:
    kind, *options = graph.split("-")
    cyclic = "noncyclic" not in options
    numbers = [option for option in options if option != "noncyclic"]
    value = int(numbers[0]) if numbers and numbers[0].isdecimal() else None
    if kind == "complete" and not options:
        return [(i, j) for i in range(num_frames) for j in range(i)]
    if kind == "oneref":
        reference = value or 0
        if reference >= num_frames:
            raise UserError(
                f"The pair graph '{graph}' refers to frame {reference}, but there are only "
                f"{num_frames} frames, numbered from 0."
            )
        return [(reference, j) for j in range(num_frames) if j != reference]
    if kind in _WINDOWS:
        return _window_pairs(num_frames, _WINDOWS[kind](value or _DEFAULT_WINDOW), cyclic)
    raise UserError(
        f"Unknown pair graph '{graph}'. Known are 'complete', 'oneref-R' and the windows "
        f"{', '.join(repr(name + '-W') for name in _WINDOWS)}, with '-noncyclic' appended unless "
        "the last frame is to meet the first."
    )


def _window_pairs(num_frames: int, offsets: list[int], cyclic: bool) -> list[tuple[int, int]]:
    pairs = set()
    for i in range(num_frames):
        for offset in offsets:
            j = i + offset
            if cyclic:
                j %= num_frames
            # An offset that is a multiple of the number of frames meets its own frame: no pair.
            if j < num_frames and j != i:
                pairs.add((min(i, j), max(i, j)))
    return sorted(pairs)


def _prefiltered(
    pairs: list[tuple[int, int]], num_frames: int, prefilter: str
) -> list[tuple[int, int]]:
    kind, limit = prefilter[:3], prefilter[3:]
    if kind not in ("seq", "cyc") or not limit.isdecimal():
        raise UserError(
            f"Unknown pair filter '{prefilter}'. It must be 'seqN' or 'cycN' with a number of "
            "frames N, for example 'seq5'."
        )

    def distance(i: int, j: int) -> int:
        straight = abs(i - j)
        return straight if kind == "seq" else min(straight, num_frames - straight)

    return [pair for pair in pairs if distance(*pair) <= int(limit)]
