"""What the live viewer shows: point clouds, frusta with pictures and the camera's way, as nodes.

The page's frame is `layers`' world turned upright and scaled, so that any scene, whatever its
unit, is met from the same distance: y up, the cloud's middle near the origin.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from align3r_jax.geometry import camera
from align3r_jax.io import gltf
from align3r_jax.viewer import camera_path, layers

Cameras = Literal["all", "current", "none"]
UNITS = 3.0  # of the page: from so far off, the whole scene is seen
DISTANCE = 3.6  # of the first view
ASIDE = np.array([0.35, 0.0, 0.0])  # moves the scene to the left, from under the panel
CHUNKS = 64  # nodes of gathered points, shown and hidden as the video goes on
FRUSTA = 12  # cameras drawn at most; of a longer video every n-th
PICTURE_WIDTH = 160  # pixels, in a frustum
_CURRENT = (255, 255, 255)
_RADIUS = 0.625  # of a side: viser counts radii, and points overlap a little to close surfaces


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the controls ask for. frustum, point_size: factors. overviews: how often the view of
    the whole scene was asked for.
    """

    frame: int
    look: layers.Look
    colour: layers.Colour
    point_size: float
    cameras: Cameras
    pictures: bool
    frustum: float
    follow: bool
    overviews: int


class LiveScene:
    """The nodes of a viser server that show `shown`."""

    def __init__(self, server: Any, shown: layers.Layers) -> None:
        self._server, self._shown = server, shown
        self._scene, self._palette = shown.scene, layers.Palette(shown.scene)
        self._frames = len(self._scene.depth)
        self._step = -(-self._frames // CHUNKS)
        height, width = np.asarray(self._scene.depth).shape[1:]
        view, distance = camera_path.overview(self._scene, shown.gathered.points, 3, 4)
        self._scale = UNITS / distance
        self._page_from_world = np.diag([self._scale] * 3 + [1.0]) @ view
        self._poses = self._page_from_world @ np.asarray(self._scene.world_from_cam, np.float64)
        self._turns = Rotation.from_matrix(self._poses[:, :3, :3] / self._scale)
        self._angles = np.asarray(camera.field_of_view(self._scene.intrinsics, height, width))
        self._aspect = width / height
        self._clouds: dict[str, Any] = {}
        self._frusta: list[tuple[int, Any]] = []
        self._prepare(height, width)

    def update(self, wanted: Wanted, before: Wanted | None) -> None:
        """Sends what differs between what is wanted and what was sent before."""

        def differs(*names: str) -> bool:
            return before is None or any(getattr(wanted, n) != getattr(before, n) for n in names)

        with self._server.atomic():
            if differs("look", "colour"):
                self._send_gathered(wanted)
            if differs("look", "colour", "frame"):
                self._show_gathered(wanted)
                self._send_current(wanted)
            if differs("point_size"):
                for cloud, size in self._clouds.values():
                    cloud.point_size = size * wanted.point_size
            if differs("cameras", "pictures", "frustum", "frame", "follow"):
                self._show_cameras(wanted, differs("pictures"))

    def picture(self, wanted: Wanted) -> np.ndarray:
        """Returns (H, W, 3) uint8: the frame in the colours that are wanted."""
        colour = "image" if wanted.colour == "time" else wanted.colour
        return np.ascontiguousarray(self._palette.image(colour, wanted.frame))

    def look_through(self, client: Any, t: int) -> None:
        """Puts a browser's eye where frame t was taken, with its field of view."""
        pose = self._poses[t]
        with client.atomic():
            client.camera.fov = float(self._angles[t, 1])
            client.camera.up_direction = -pose[:3, 1] / self._scale
            client.camera.position = pose[:3, 3]
            client.camera.look_at = pose[:3, 3] + pose[:3, 2] / self._scale * DISTANCE

    def look_from_outside(self, client: Any) -> None:
        """Gives a browser the first view again."""
        with client.atomic():
            client.camera.fov = np.radians(camera_path.FIELD_OF_VIEW)
            client.camera.up_direction = (0.0, 1.0, 0.0)
            client.camera.position = self._eye()
            client.camera.look_at = ASIDE

    def _eye(self) -> np.ndarray:
        pitch = np.radians(camera_path.ORBIT_PITCH)
        return ASIDE + DISTANCE * np.array([0.0, np.sin(pitch), np.cos(pitch)])

    def _prepare(self, height: int, width: int) -> None:
        scene = self._server.scene
        scene.set_up_direction("+y")
        start = self._server.initial_camera
        start.position, start.look_at, start.up = self._eye(), ASIDE, np.array([0.0, 1, 0])
        start.fov = np.radians(camera_path.FIELD_OF_VIEW)
        start.near = 0.002
        colours = gltf.camera_colours(self._frames)
        centres = self._poses[:, :3, 3]
        if self._frames > 1:
            ends = np.stack([centres[:-1], centres[1:]], axis=1).astype(np.float32)
            shades = np.stack([colours[:-1], colours[1:]], axis=1)
            self._way = scene.add_line_segments(
                "/way", ends, shades, thickness=2.5, thickness_units="screen"
            )
        for t in range(0, self._frames, -(-self._frames // FRUSTA)):
            self._frusta.append((t, self._add_frustum(f"/cameras/{t:04d}", t, colours[t], 1.5)))
        self._current = self._add_frustum("/camera", 0, np.array(_CURRENT), 3.0)

    def _add_frustum(self, name: str, t: int, colour: np.ndarray, thickness: float) -> Any:
        return self._server.scene.add_camera_frustum(
            name, float(self._angles[t, 1]), self._aspect, scale=self._frustum_scale(t),
            thickness=thickness, thickness_units="screen", color=tuple(int(c) for c in colour),
            image=self._small_picture(t), format="jpeg", jpeg_quality=80,
            wxyz=self._turns[t].as_quat(scalar_first=True), position=self._poses[t, :3, 3],
            cast_shadow=False, receive_shadow=False,
        )  # fmt: skip

    def _frustum_scale(self, t: int) -> float:
        """viser divides a frustum of depth 1 by the cube root of (half width * half height / 3)."""
        half = np.tan(self._angles[t, 1] / 2)
        size = gltf.frustum_size(self._scene) * self._scale
        return float(size * np.cbrt(half * half * self._aspect / 3))

    def _small_picture(self, t: int) -> np.ndarray:
        picture = np.asarray(self._scene.colours[t])
        shrink = min(1.0, PICTURE_WIDTH / picture.shape[1])
        return cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)

    def _send_gathered(self, wanted: Wanted) -> None:
        everything = layers.Look(wanted.look.min_confidence, wanted.look.motion, "all")
        sample = self._shown.still(everything, 0)
        colours = self._palette.of(sample, wanted.colour)
        starts = range(0, self._frames, self._step)
        bounds = np.searchsorted(sample.frame, [*starts, self._frames])
        for t, first, last in zip(starts, bounds, bounds[1:]):
            part = slice(int(first), int(last))
            self._send_cloud(f"/gathered/{t:04d}", sample[part], colours[part], wanted)

    def _show_gathered(self, wanted: Wanted) -> None:
        gather = wanted.look.gather
        for t in range(0, self._frames, self._step):
            if (name := f"/gathered/{t:04d}") in self._clouds:
                late = gather == "past" and t > wanted.frame
                self._clouds[name][0].visible = gather != "frame" and not late

    def _send_current(self, wanted: Wanted) -> None:
        sample = self._shown.current(wanted.look, wanted.frame)
        colours = self._palette.of(sample, wanted.colour)
        self._send_cloud("/frame", sample, colours, wanted)

    def _send_cloud(
        self, name: str, sample: layers.Sample, colours: np.ndarray, wanted: Wanted
    ) -> None:
        if not len(sample):
            if name in self._clouds:
                self._clouds.pop(name)[0].remove()
            return
        page = self._page_from_world
        points = (sample.points @ page[:3, :3].T + page[:3, 3]).astype(np.float32)
        size = float(np.median(sample.size)) * self._scale * _RADIUS
        cloud = self._server.scene.add_point_cloud(
            name, points, colours, point_size=size * wanted.point_size, point_shape="circle",
            point_shading="flat", precision="float32",
        )  # fmt: skip
        self._clouds[name] = cloud, size

    def _show_cameras(self, wanted: Wanted, new_pictures: bool) -> None:
        seen = wanted.cameras != "none" and not wanted.follow
        t, current = wanted.frame, self._current
        if self._frames > 1:
            self._way.visible = seen
        for number, frustum in self._frusta:
            frustum.visible = seen and wanted.cameras == "all" and number != t
            frustum.scale = wanted.frustum * self._frustum_scale(number)
            if new_pictures:
                frustum.image = self._small_picture(number) if wanted.pictures else None
        current.visible = seen
        current.image = self._small_picture(t) if wanted.pictures else None
        current.fov = float(self._angles[t, 1])
        current.wxyz = self._turns[t].as_quat(scalar_first=True)
        current.position = self._poses[t, :3, 3]
        # A little larger than the others, which therefore do not shine through its picture.
        current.scale = 1.5 * wanted.frustum * self._frustum_scale(t)
