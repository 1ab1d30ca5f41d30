"""The panel of the live viewer: sliders, lists and buttons, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from align3r_jax.structs import Scene
from align3r_jax.viewer import layers, live_scene

# What is written in the lists; the first of each is where a viewer starts.
GATHER_LABELS: dict[str, layers.Gather] = {
    "all frames": "all", "frames so far": "past", "this frame only": "frame",
}  # fmt: skip
MOTION_LABELS: dict[str, layers.Motion] = {
    "everything": "all", "what stands still": "static", "what moves": "moving",
}  # fmt: skip
CAMERA_LABELS: dict[str, live_scene.Cameras] = {
    "all": "all", "this frame's": "current", "none": "none",
}  # fmt: skip
_SPEEDS = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0, "4": 4.0}


class Controls:
    """Builds the panel. changed: called, from threads of the server, when anything is touched."""

    def __init__(
        self,
        server: Any,
        scene: Scene,
        look: layers.Look,
        colour: layers.Colour,
        point_size: float,
        changed: Callable[[], None],
    ) -> None:
        gui, self._frames, self._changed = server.gui, len(scene.depth), changed
        self.playing = False
        gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        self._image = gui.add_image(np.asarray(scene.colours[0]), format="jpeg", jpeg_quality=85)
        still = self._frames < 2
        self._frame = gui.add_slider("Frame", 0, max(self._frames - 1, 1), 1, 0, disabled=still)
        self._play = gui.add_button("Play", disabled=still)
        self._speed = gui.add_dropdown(
            "Speed", tuple(_SPEEDS), initial_value="1", disabled=still,
            hint="Times the video's own speed.",
        )  # fmt: skip
        with gui.add_folder("Points"):
            self._gather = self._list(
                gui, "Gather", GATHER_LABELS, look.gather,
                "What stands still, from which frames. What moves is shown at its own frame.",
            )  # fmt: skip
            self._motion = self._list(
                gui, "Show", MOTION_LABELS, look.motion, "By the motion masks of the result."
            )
            low, high = layers.confidence_range(scene)
            low = float(np.floor(10 * min(low, look.min_confidence)) / 10)
            high = float(np.ceil(10 * max(high, look.min_confidence)) / 10)
            self._confidence = gui.add_slider(
                "Confidence", low, high, max(round((high - low) / 200, 2), 0.01),
                float(look.min_confidence),
                hint="Points of lower confidence are hidden.",
            )  # fmt: skip
            self._colour = gui.add_dropdown(
                "Colour", layers.COLOURS, initial_value=colour,
                hint="Of the video; or near, sure, late = bright or red; or what moves = red.",
            )  # fmt: skip
            self._size = gui.add_slider(
                "Point size",
                min(0.2, point_size),
                max(4.0, point_size),
                0.05,
                point_size,
                hint="1: a point covers its pixel.",
            )  # fmt: skip
        with gui.add_folder("Cameras"):
            self._cameras = self._list(gui, "Show", CAMERA_LABELS, "all", "Frusta and their way.")
            self._pictures = gui.add_checkbox("Pictures in them", True)
            self._frustum = gui.add_slider("Size", 0.2, 4.0, 0.1, 1.0)
            self._follow = gui.add_checkbox(
                "Look through the camera", False, hint="Sees what the video saw, frame by frame."
            )
            self._overview = gui.add_button("See the whole scene")
        self._overviews = 0
        for control in (
            self._frame, self._speed, self._gather, self._motion, self._confidence, self._colour,
            self._size, self._cameras, self._pictures, self._frustum, self._follow,
        ):  # fmt: skip
            control.on_update(self._touched)
        self._play.on_click(self._toggle)
        self._overview.on_click(self._leave)

    @property
    def speed(self) -> float:
        """Times the video's own speed."""
        return _SPEEDS[self._speed.value]

    def wanted(self) -> live_scene.Wanted:
        """Returns what the panel asks for now."""
        return live_scene.Wanted(
            frame=min(int(self._frame.value), self._frames - 1),
            look=layers.Look(
                min_confidence=float(self._confidence.value),
                motion=MOTION_LABELS[self._motion.value],
                gather=GATHER_LABELS[self._gather.value],
            ),
            colour=self._colour.value,
            point_size=float(self._size.value),
            cameras=CAMERA_LABELS[self._cameras.value],
            pictures=bool(self._pictures.value),
            frustum=float(self._frustum.value),
            follow=bool(self._follow.value),
            overviews=self._overviews,
        )

    def next_frame(self) -> None:
        """Moves the slider on, from the last frame to the first."""
        self._frame.value = (int(self._frame.value) + 1) % self._frames

    def show_picture(self, picture: np.ndarray) -> None:
        """Shows the frame's (H, W, 3) uint8 picture above the sliders."""
        self._image.image = picture

    def _touched(self, _: Any) -> None:
        self._changed()

    def _toggle(self, _: Any) -> None:
        self.playing = not self.playing
        self._play.label = "Pause" if self.playing else "Play"
        self._changed()

    def _leave(self, _: Any) -> None:
        self._follow.value = False
        self._overviews += 1
        self._changed()

    @staticmethod
    def _list(gui: Any, label: str, labels: dict, value: str, hint: str) -> Any:
        text = next(text for text, meant in labels.items() if meant == value)
        return gui.add_dropdown(label, tuple(labels), initial_value=text, hint=hint)
