"""Waymo: TFRecords with known lidar points, processed folders and pairs, the lens, bad files."""

import pickle

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from align3r_jax.errors import UserError
from align3r_jax.io import exr, train_crop
from data.readers import tfrecord, training_sets, waymo_depth, waymo_frame
from data.readers.training import TrainingOptions
from tests.data.readers import folders, waymo_files

PARITY = TrainingOptions(parity=True)
LENS = np.array([0.25, -0.05, 0.004, -0.003, 0.0])
HEIGHT, WIDTH = 40, 64
FOCAL, CENTRE = 50.0, (31.25, 19.5)
# Cars: x forward, y left, z up.
AXES = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], float)


def rigid(angles, translation):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def moved(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def distorted(rays, lens):
    """Normalised image points of a lens, by the formula of Brown and Conrady."""
    k1, k2, p1, p2, k3 = lens
    x, y = rays.T
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        -1,
    )


class Drive:
    """A street of points, seen by two scanners on a car that moves while they scan."""

    def __init__(self, lens, *, moving=True):
        rng = np.random.default_rng(3)
        self.lens = lens
        self.at_frame = rigid([0.01, -0.02, 0.5], [500.0, -200.0, 30.0])
        shift = rigid([0, 0, 0.02], [0.7, 0.05, 0]) if moving else np.eye(4)
        self.at_picture = self.at_frame @ shift
        self.car_from_camera = rigid([0.02, 0.01, -0.1], [1.5, 0.1, 2.1])
        self.image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        self.lasers, world = [], []
        beams = np.sort(rng.uniform(-0.3, 0.1, 12))
        for name, scan, angles, extrinsic in (
            (1, (12, 90), beams, rigid([0.01, 0.02, 0.3], [1.4, 0, 2.2])),
            (2, (6, 40), (-0.4, 0.3), rigid([0, 0.05, -0.2], [4.0, 0, 0.7])),
        ):
            poses = None
            if name == 1 and moving:  # the top scanner alone tells where the car was
                poses = np.zeros((*scan, 6))
                euler = Rotation.from_matrix(self.at_frame[:3, :3]).as_euler("ZYX")
                poses[..., :3] = euler[::-1]
                poses[..., 3:] = self.at_frame[:3, 3]
                poses[..., 2] += np.linspace(-0.02, 0.02, scan[1])
                poses[..., 3] += np.linspace(-0.5, 0.5, scan[1])
            ranges = np.zeros((*scan, 4))
            ranges[..., 0] = rng.uniform(4, 60, scan)
            ranges[..., 0][rng.uniform(size=scan) < 0.2] = -1  # nothing came back
            if poses is not None:
                poses = poses.astype(np.float32).astype(float)
            ranges = ranges.astype(np.float32)
            points = self._points(ranges, angles, extrinsic, poses)
            pixels = self.pixels(points)
            seen = (pixels >= 0).all(-1) & (pixels < (WIDTH, HEIGHT)).all(-1)
            seen &= ranges[..., 0] > 0
            projections = np.zeros((*scan, 6), np.int64)
            # The second projection of a place is used as the first is.
            slot = rng.integers(2, size=scan) * 3
            for row, column in np.argwhere(seen):
                first = slot[row, column]
                projections[row, column, first] = 1
                x, y = np.floor(pixels[row, column]).astype(int)
                projections[row, column, first + 1 : first + 3] = x, y
            projections[~seen, 3] = 4
            projections[~seen, 4] = -7  # ten bytes on the wire
            world.append([points[seen], projections[seen]])
            self.lasers.append(
                (name, angles, extrinsic, waymo_files.range_image(ranges, projections, poses))
            )
        self.points = np.concatenate([item[0] for item in world])
        found = np.concatenate([item[1] for item in world])
        self.recorded = np.where(found[:, :1] == 1, found[:, 1:3], found[:, 4:])

    def _points(self, ranges, angles, extrinsic, poses):
        """By one rotation after the other, cell by cell."""
        height, width = ranges.shape[:2]
        if isinstance(angles, tuple):
            step = (angles[1] - angles[0]) / height
            angles = angles[0] + step * (np.arange(height) + 0.5)
        points = np.zeros((height, width, 3))
        yaw = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
        for row in range(height):
            for column in range(width):
                # Columns run clockwise from the back; the highest beam is row 0.
                azimuth = np.pi - 2 * np.pi * (column + 0.5) / width - yaw
                turn = Rotation.from_euler("ZY", [azimuth, -angles[height - 1 - row]])
                point = turn.apply([ranges[row, column, 0], 0, 0])
                point = moved(extrinsic, point)
                if poses is None:
                    point = moved(self.at_frame, point)
                else:
                    roll, pitch, around, *at = poses[row, column]
                    for axis, angle in (("x", roll), ("y", pitch), ("z", around)):
                        point = Rotation.from_euler(axis, angle).apply(point)
                    point = point + at
                points[row, column] = point
        return points

    def in_camera(self, points, at):
        points = moved(np.linalg.inv(at @ self.car_from_camera), points)
        return points @ AXES.T

    def pixels(self, points):
        """Where the lens shows points, from the left edge of the first pixel; NaN behind."""
        flat = self.in_camera(points.reshape(-1, 3), self.at_picture)
        with np.errstate(all="ignore"):
            rays = distorted(flat[:, :2] / flat[:, 2:], self.lens)
            pixels = rays * FOCAL + CENTRE + 0.5
            # Far outside, the formula of the lens turns back into the picture.
            hidden = (flat[:, 2] <= 0.1) | (np.abs(flat[:, :2] / flat[:, 2:]) > 1).any(-1)
        pixels[hidden] = np.nan
        return pixels.reshape(*points.shape[:-1], 2)

    def frame(self):
        intrinsic = [FOCAL, FOCAL, *CENTRE, *self.lens]
        camera = (intrinsic, self.car_from_camera, self.image, self.at_picture)
        return waymo_files.frame(self.at_frame, [(1, *camera), (3, *camera)], self.lasers)


@pytest.fixture(scope="module")
def drive():
    return Drive(LENS)


@pytest.fixture(scope="module")
def raw(drive, tmp_path_factory):
    root = tmp_path_factory.mktemp("waymo")
    frames = [drive.frame(), Drive(np.zeros(5), moving=False).frame(), drive.frame()]
    folders.binary(root / "training" / "segment-1.tfrecord", waymo_files.tfrecord(frames))
    folders.binary(root / "validation" / "segment-2.tfrecord", waymo_files.tfrecord(frames[:1]))
    return root


def camera(root, number, options=TrainingOptions(), index=0):
    found, skipped = training_sets.scenes("waymo", root, options)
    assert not skipped
    return next(s for s in found if s.name.endswith(f"_camera{number}")).load(index)


def test_checksum_of_the_standard():
    """RFC 3720, appendix B.4, and the mask of the TFRecord format."""
    for data, expected in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)):
        masked = ((expected >> 15 | expected << 17) + 0xA282EAD8) & 0xFFFFFFFF
        assert tfrecord.masked_crc32c(data) == masked == waymo_files.masked(data)


def test_scenes_are_cameras_with_the_pairs_of_the_video(raw):
    found, _ = training_sets.scenes("waymo", raw)
    assert [scene.name for scene in found] == [f"segment-1_camera{k}" for k in range(1, 6)]
    assert found[2].frames == ("00000_3", "00001_3", "00002_3")
    np.testing.assert_array_equal(found[0].pairs, [[0, 1], [1, 2], [0, 2]])
    held_out, _ = training_sets.scenes("waymo", raw, TrainingOptions(split="test"))
    assert held_out[0].name == "segment-2_camera1"
    pickle.loads(pickle.dumps(found[0])).load(2)


def test_points_land_where_the_recorded_pixels_are(raw, drive):
    """As published: every depth is that of the last point of its pixel, for the frame's pose."""
    frame = camera(raw, 1, PARITY)
    expected = np.zeros((HEIGHT, WIDTH))
    depth = drive.in_camera(drive.points, drive.at_frame)[:, 2]
    for (x, y), z in zip(drive.recorded, depth):
        expected[y, x] = z
    assert (expected > 0).sum() > 50
    np.testing.assert_allclose(frame.depth, expected, rtol=1e-6)
    np.testing.assert_allclose(
        frame.world_from_cam[:3, 3], moved(drive.at_frame, drive.car_from_camera[:3, 3])
    )
    assert abs(frame.image.astype(int) - 90).max() <= 1


def test_depth_unprojects_to_the_scanned_points(raw, drive):
    """By default pixel, depth, intrinsics and pose of a moving car with a lens give the points."""
    frame = camera(raw, 1)
    rows, columns = np.nonzero(frame.depth)
    assert len(rows) > 50
    pixels = np.stack([columns, rows, np.ones(len(rows))], -1)
    points = pixels @ np.linalg.inv(frame.intrinsics).T * frame.depth[rows, columns, None]
    points = moved(frame.world_from_cam, points)
    nearest = np.linalg.norm(points[:, None] - drive.points[None], axis=-1).min(1)
    # Twice the pixel is rounded, when recorded and when undistorted: at most a pixel across.
    assert (nearest < 1.5 / FOCAL * frame.depth[rows, columns]).all()
    published = camera(raw, 1, PARITY)
    rows, columns = np.nonzero(published.depth)
    pixels = np.stack([columns, rows, np.ones(len(rows))], -1)
    points = pixels @ np.linalg.inv(published.intrinsics).T * published.depth[rows, columns, None]
    points = moved(published.world_from_cam, points)
    assert (
        np.linalg.norm(points[:, None] - drive.points[None], axis=-1).min(1).mean() > nearest.mean()
    )


@pytest.mark.parametrize(("parity", "middle"), [(True, (171, 256)), (False, (170, 256))])
def test_large_pictures_are_brought_to_512(parity, middle):
    """Four beams to the front left, front right and back; the camera looks to the left."""
    recorded = np.zeros((1, 4, 6), int)
    recorded[0, :, 0] = 1
    recorded[0, :, 1:3] = [(1919, 1279), (960, 641), (100, 100), (200, 200)]
    laser = waymo_frame.Laser(np.full((1, 4, 4), 10.0), recorded, None, np.zeros(1), np.eye(4))
    lens = np.array([2000.0, 2000, 959.5, 639.5, 0, 0, 0, 0, 0])
    picture = waymo_frame.Camera(lens, rigid([0, 0, np.pi / 2], [0, 0, 0]), None, (1280, 1920), b"")
    frame = waymo_frame.Frame(np.eye(4), {1: picture}, {1: laser})
    image = np.zeros((1280, 1920, 3), np.uint8)
    view, _ = waymo_depth.view(image, frame, 1, parity=parity)
    assert view.image.shape == (341, 512, 3)
    np.testing.assert_allclose(view.intrinsics[0], [2000 * 512 / 1920, 0, 255.5], atol=1e-4)
    depth = view.maps["depth"]
    found = {(y, x): depth[y, x] for y, x in np.argwhere(depth)}
    assert found == {middle: pytest.approx(50**0.5), (340, 511): pytest.approx(50**0.5)}


def processed(root, world, *, lens=(0,) * 5, cameras=(1, 2)):
    names = [f"{k:05d}_{camera}" for camera in cameras for k in range(len(world.depth))]
    for name in names:
        k, folder = int(name[:5]), root / "segment-9.tfrecord"
        folders.picture(folder / f"{name}.jpg", np.full_like(world.images[k], 120))
        exr.write_exr(folder / f"{name}.exr", world.depth[k], channel="Y")
        np.savez(
            folder / f"{name}.npz", intrinsics=world.intrinsics[k].astype(np.float32),
            cam2world=world.world_from_cam[k], distortion=lens,
        )  # fmt: skip
    return names


def pair_file(root, names, pairs):
    np.savez(root / "waymo_pairs_video.npz", scenes=["other.tfrecord", "segment-9.tfrecord"],
             frames=names, pairs=pairs)  # fmt: skip


def test_processed_folders_and_their_pairs(tmp_path, training_world):
    names = processed(tmp_path, training_world)
    found, skipped = training_sets.scenes("waymo", tmp_path)
    assert [scene.name for scene in found] == ["segment-9_camera1", "segment-9_camera2"]
    assert not skipped and len(found[0].pairs) == 6  # strides 1, 2 and 3 of four frames
    pair_file(tmp_path, names[::-1], [(1, 7, 5), (1, 0, 3), (0, 1, 2)])
    found, _ = training_sets.scenes("waymo", tmp_path)
    assert [scene.pairs.tolist() for scene in found] == [[[0, 2]], [[3, 0]]]
    frame = pickle.loads(pickle.dumps(found[1])).load(3)
    np.testing.assert_array_equal(frame.depth, training_world.depth[3])
    np.testing.assert_allclose(frame.world_from_cam, training_world.world_from_cam[3])
    np.testing.assert_allclose(frame.intrinsics, training_world.intrinsics[3], rtol=1e-6)


def test_lens_of_processed_folders_is_undone(tmp_path, training_world):
    world = training_world
    processed(tmp_path, world, lens=LENS, cameras=(1,))
    published = camera(tmp_path, 1, PARITY)
    np.testing.assert_array_equal(published.depth, world.depth[0])
    frame = camera(tmp_path, 1)
    rows, columns = np.nonzero(frame.depth)
    moved_pixels = 0
    inverse = np.linalg.inv(frame.intrinsics)
    for row, column in zip(rows, columns):
        ray = (inverse @ [column, row, 1])[None, :2]
        x, y = distorted(ray, LENS)[0] * frame.intrinsics[[0, 1], [0, 1]]
        x, y = np.array([x, y]) + frame.intrinsics[:2, 2]
        top, left = max(round(y) - 1, 0), max(round(x) - 1, 0)
        around = world.depth[0][top : round(y) + 2, left : round(x) + 2]
        assert (np.abs(around - frame.depth[row, column]) < 1e-6).any(), (row, column)
        moved_pixels += abs(x - column) > 0.6
    assert moved_pixels > 10


def test_picture_and_depth_leave_the_lens_together():
    """A dot that the lens shows away from where a pinhole would comes back, with its depth."""
    intrinsics = np.array([[FOCAL, 0, 31.5], [0, FOCAL, 19.5], [0, 0, 1]])
    target = np.array([57.0, 5.0])
    ray = (np.linalg.inv(intrinsics) @ [*target, 1])[None, :2]
    seen = distorted(ray, LENS)[0] * FOCAL + intrinsics[:2, 2]
    assert np.abs(seen - target).max() > 1.5
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    column, row = np.round(seen).astype(int)
    image[row - 1 : row + 2, column - 1 : column + 2] = 255
    view = train_crop.View(image, {}, intrinsics)
    out = waymo_depth.sparse_view(view, seen[None], np.array([7.0]), LENS)
    bright = np.argwhere(out.image[..., 0] > 127).mean(0)[::-1]
    np.testing.assert_allclose(bright, target, atol=0.6)
    assert out.maps["depth"][5, 57] == 7 and (out.maps["depth"] > 0).sum() == 1


def test_bad_input(tmp_path, raw, training_world):
    with pytest.raises(UserError, match="expected training/segment"):
        training_sets.scenes("waymo", tmp_path)
    whole = (raw / "training" / "segment-1.tfrecord").read_bytes()
    for name, content, sentence in (
        ("cut", whole[:-900], "cut short within record 2"),
        ("header", whole + b"abc", "cut short after record 3"),
        ("length", b"\x01" + whole[1:], "checksum at byte 0"),
        ("text", b"This is no TFRecord file.", "no TFRecord file"),
        ("empty", b"", "no frames"),
    ):
        folders.binary(tmp_path / name / "a.tfrecord", content)
        with pytest.raises(UserError, match=sentence):
            training_sets.scenes("waymo", tmp_path / name)
    junk = waymo_files.tfrecord([b"\x0a\x05ab", b"\xff" * 20, waymo_files.frame(np.eye(4), [], [])])
    folders.binary(tmp_path / "junk" / "a.tfrecord", junk)
    for index, sentence in (
        (0, "longer than its message"),
        (1, "kind|end"),
        (2, "camera 1 is not"),
    ):
        with pytest.raises(UserError, match=f"frame {index}, camera 1.*{sentence}"):
            camera(tmp_path / "junk", 1, index=index)
    with pytest.raises(UserError, match="camera 2 is not among"):
        camera(raw, 2)
    with pytest.raises(UserError, match="validation"):
        training_sets.scenes("waymo", tmp_path / "junk", TrainingOptions(split="test"))
    with pytest.raises(UserError, match="prior 'depthpro' lies beside pictures"):
        training_sets.scenes("waymo", raw, TrainingOptions(prior="depthpro"))


def test_bad_processed_folders(tmp_path, training_world):
    names = processed(tmp_path, training_world)
    folder = tmp_path / "segment-9.tfrecord"
    pair_file(tmp_path, names, [(1, 0, 5)])
    with pytest.raises(UserError, match="'00000_1' and '00001_2'.*two cameras"):
        training_sets.scenes("waymo", tmp_path)
    pair_file(tmp_path, names, [(1, 0, 99)])
    with pytest.raises(UserError, match="points behind"):
        training_sets.scenes("waymo", tmp_path)
    (tmp_path / "waymo_pairs_video.npz").write_bytes(b"junk")
    with pytest.raises(UserError, match="holds no pairs"):
        training_sets.scenes("waymo", tmp_path)
    (tmp_path / "waymo_pairs_video.npz").unlink()
    (folder / "00002_1.exr").unlink()
    (folder / "00000_2.npz").write_bytes(b"junk")
    exr.write_exr(folder / "00001_2.exr", np.ones((3, 4)))
    found, skipped = training_sets.scenes("waymo", tmp_path)
    assert "00002_1.exr" in skipped[0].reason and len(found) == 1
    with pytest.raises(UserError, match="holds no camera"):
        found[0].load(0)
    with pytest.raises(UserError, match="of one size"):
        found[0].load(1)
    with pytest.raises(UserError, match="have no prior 'depthpro'"):
        training_sets.scenes("waymo", tmp_path, TrainingOptions(prior="depthpro"))
    folders.binary(tmp_path / "b.tfrecord", b"")
    with pytest.raises(UserError, match="both raw files and processed"):
        training_sets.scenes("waymo", tmp_path)
    with Image.open(folder / "00001_1.jpg") as picture:
        assert picture.size == (32, 24)
