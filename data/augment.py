"""What chance changes about a view: crop, field of view, colours.

Order of the draws of a pair, view 1 then view 2, on one generator (Align3R): portrait if the view
is nearly square, scale of the centre crop, extra pixels, where the crop lies. Colours have a
generator of their own. Nothing is shared by the two views: crops and colours are asymmetric.

Colours are jittered on 8 bit by Pillow, so that pixels are those that published training saw:
brightness blends with black, contrast with the mean grey, saturation with the grey picture, by a
factor U[1 - a, 1 + a]; hue turns the 8-bit H of HSV by trunc(255 * U[-h, h]), h = 0: no step; in
random order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from align3r_jax.errors import UserError
from align3r_jax.io import train_crop
from data import settings_text

_SQUARE = (0.9, 1.1)  # height / width between which either orientation may be chosen


@dataclasses.dataclass(frozen=True)
class ColourJitter:
    """Half widths of the factors around 1, and of the turn of the hue (of a whole circle)."""

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1


@dataclasses.dataclass(frozen=True)
class ColourDraw:
    """What chance decides about the colours. order: of the four operations, as the fields."""

    order: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How much chance may change.

    scales: the centre crop keeps one of these fractions (Align3R `aug_f`), empty: none.
    focal_beta: a, it keeps a + (1 - a) Beta(0.5, 0.5) (MonST3R); not with scales. extra: up to
    extra - 1 pixels are added to the target before the final crop, 0 and 1: none. wander: further
    pixels that are added, an even number, and the final crop lies anywhere in the target so
    enlarged (CroCo: 224 of 256), 0: in its centre. colours: None leaves them. min_margin: views
    whose principal point is nearer to an edge than this fraction of the side are refused (MonST3R:
    0.2). prior_dropout: share of pairs that see no depth prior.
    """

    scales: tuple[float, ...] = train_crop.FOCAL_SCALES
    focal_beta: float | None = None
    extra: int = 16
    wander: int = 0
    colours: ColourJitter | None = ColourJitter()
    min_margin: float = 0.0
    prior_dropout: float = 0.0

    def check(self) -> Augmentation:
        """Returns self. Raises UserError for values outside of their range."""
        fractions = [*self.scales, *([] if self.focal_beta is None else [self.focal_beta])]
        if any(not 0 < fraction <= 1 for fraction in fractions):
            raise UserError(f"Crop scales must lie in (0, 1], got {fractions}.")
        if self.scales and self.focal_beta is not None:
            raise UserError("Choose scales or focal_beta; both crop around the centre.")
        if self.extra < 0 or not 0 <= self.min_margin < 0.5 or not 0 <= self.prior_dropout <= 1:
            raise UserError(
                "extra must be at least 0, min_margin in [0, 0.5), prior_dropout in [0, 1]; got "
                f"{self.extra}, {self.min_margin}, {self.prior_dropout}."
            )
        if self.wander < 0 or self.wander % 2:
            raise UserError(f"wander must be an even number of pixels, got {self.wander}.")
        if self.colours is not None:
            widths = dataclasses.astuple(self.colours)
            if min(widths) < 0 or max(widths[:3]) > 1 or widths[3] > 0.5:
                raise UserError(
                    f"Colour jitter must lie in [0, 1], of the hue in [0, 0.5]; got {widths}."
                )
        return self


NONE = Augmentation(scales=(), extra=0, colours=None)
PRESETS = {
    "none": NONE,
    "align3r": Augmentation(),
    "monst3r": Augmentation(scales=(), focal_beta=0.9, min_margin=0.2),
    "dust3r": Augmentation(scales=()),
    # Pre-training: CroCo v2 (Weinzaepfel et al. 2023), colours in [0.6, 1.4], hues as they are.
    "croco": Augmentation(
        scales=(), extra=0, wander=32, colours=ColourJitter(0.4, 0.4, 0.4, hue=0.0)
    ),
}


def augmentation(value: str | Mapping[str, Any]) -> Augmentation:
    """Returns the augmentation of a preset's name, or of {"preset": name, field: value, ...}.

    Fields replace those of the preset (default: align3r); colours is None or a mapping of the
    fields of `ColourJitter`. Raises UserError for unknown names and wrong values.
    """
    fields = {"preset": value} if isinstance(value, str) else dict(value)
    preset = fields.pop("preset", "align3r")
    if preset not in PRESETS:
        raise UserError(f"The augmentation '{preset}' is unknown; known are {', '.join(PRESETS)}.")
    settings_text.check_names(fields, Augmentation, "augmentation")
    if isinstance(fields.get("colours"), Mapping):
        settings_text.check_names(fields["colours"], ColourJitter, "augmentation.colours")
        fields["colours"] = ColourJitter(**fields["colours"])
    if "scales" in fields:
        fields["scales"] = tuple(fields["scales"])
    return dataclasses.replace(PRESETS[preset], **fields).check()


def draw_crop(
    generator: np.random.Generator,
    shape: tuple[int, int],
    intrinsics: np.ndarray,
    target: tuple[int, int],
    options: Augmentation,
) -> train_crop.CropDraw:
    """Draws what chance decides about the geometry of a view of `shape` (height, width).

    Raises UserError if the principal point lies outside of the image, or nearer to an edge than
    `options.min_margin` allows.
    """
    _, _, height, width = train_crop.principal_window(shape, intrinsics, options.min_margin)
    square = _SQUARE[0] < height / width < _SQUARE[1] and target[0] != target[1]
    portrait = bool(generator.integers(2)) if square else False
    scale = None
    if options.scales:
        scale = float(generator.choice(options.scales))
    elif options.focal_beta is not None:
        scale = options.focal_beta + (1 - options.focal_beta) * float(generator.beta(0.5, 0.5))
    extra = int(generator.integers(0, options.extra)) if options.extra > 1 else None
    if not options.wander:
        return train_crop.CropDraw(portrait, scale, extra)
    reach = options.wander // 2
    rows, columns = (int(n) for n in generator.integers(-reach, reach, size=2, endpoint=True))
    return train_crop.CropDraw(portrait, scale, (extra or 0) + options.wander, (rows, columns))


def draw_colours(generator: np.random.Generator, jitter: ColourJitter) -> ColourDraw:
    """Draws the order of the operations, then their four amounts."""
    order = tuple(generator.permutation(4).tolist())
    factors = [
        generator.uniform(1 - width, 1 + width)
        for width in (jitter.brightness, jitter.contrast, jitter.saturation)
    ]
    return ColourDraw(order, *factors, hue=generator.uniform(-jitter.hue, jitter.hue))


def apply_colours(image: np.ndarray, draw: ColourDraw) -> np.ndarray:
    """Returns the image (H, W, 3) uint8 with its colours changed; rounded after every step."""
    picture = Image.fromarray(image)
    for step in draw.order:
        if step == 0:
            picture = ImageEnhance.Brightness(picture).enhance(draw.brightness)
        elif step == 1:
            picture = ImageEnhance.Contrast(picture).enhance(draw.contrast)
        elif step == 2:
            picture = ImageEnhance.Color(picture).enhance(draw.saturation)
        elif draw.hue:  # HSV of 8 bit and back is not exact, so no turn must be no step
            picture = _turn_hue(picture, draw.hue)
    return np.asarray(picture)


def _turn_hue(picture: Image.Image, turn: float) -> Image.Image:
    shift = int(255 * turn)  # truncates towards zero
    hue, *others = picture.convert("HSV").split()
    hue = hue.point([(value + shift) % 256 for value in range(256)])
    return Image.merge("HSV", (hue, *others)).convert("RGB")
