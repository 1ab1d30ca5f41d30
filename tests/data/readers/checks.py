"""What a training scene read from disk must agree with."""

import pickle

import numpy as np


def static_flow(intrinsics, world_from_cam, depth, first, second):
    """Motion in pixels, (h, w, 2), of a world that stands still, by projection in float64.

    On at most 40 rows and columns.
    """
    height, width = depth[first].shape
    rows, columns = np.arange(0, height, 1 + height // 40), np.arange(0, width, 1 + width // 40)
    x, y = np.meshgrid(columns, rows)
    pixels = np.stack([x, y, np.ones_like(x)], -1).astype(np.float64)
    chosen = depth[first][np.ix_(rows, columns)]
    points = pixels @ np.linalg.inv(intrinsics[first]).T * chosen[..., None]
    step = np.linalg.inv(world_from_cam[second]) @ world_from_cam[first]
    seen = (points @ step[:3, :3].T + step[:3, 3]) @ intrinsics[second].T
    return seen[..., :2] / seen[..., 2:] - pixels[..., :2]


def assert_scene(scene, world, *, depth=1e-5, images=True):
    """The scene, pickled and loaded again, is the world's frames.

    depth: relative tolerance. images: pictures are stored without loss. Poses may
    differ by a rigid motion of the world; where the pixels of every frame come to lie in every
    other, by what was read alone, is the truth within 0.02 pixels. Returns the frames.
    """
    scene = pickle.loads(pickle.dumps(scene))
    count = len(world.depth)
    assert scene.num_frames == count and len(set(scene.frames)) == count
    read = [scene.load(index) for index in range(count)]
    for index, frame in enumerate(read):
        assert frame.image.dtype == np.uint8 and frame.image.shape == world.images[index].shape
        if images:
            np.testing.assert_array_equal(frame.image, world.images[index])
        assert frame.depth.dtype == np.float32
        np.testing.assert_allclose(frame.depth, world.depth[index], rtol=depth)
        np.testing.assert_allclose(frame.intrinsics, world.intrinsics[index], rtol=1e-6)
        assert frame.world_from_cam.dtype == np.float64
    stacked = [
        np.stack([getattr(frame, name) for frame in read])
        for name in ("intrinsics", "world_from_cam", "depth")
    ]
    truth = world.intrinsics, world.world_from_cam, world.depth
    for first in range(count):
        for second in range(count):
            got = static_flow(*stacked, first, second)
            np.testing.assert_allclose(got, static_flow(*truth, first, second), atol=0.02)
    return read
