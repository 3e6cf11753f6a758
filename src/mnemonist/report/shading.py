"""A colour ramp that reads as a quantity.

Equal steps of the quantity must look like equal steps, or the eye finds borders that are not there. OKLCH
(Ottosson, 2020) has the lightness for that: along the ramp it moves in equal steps at one hue, from the
page's own paper to the accent. Each step also says whether text on it is written in ink or in paper,
whichever is easier to read.
"""

import math
from dataclasses import dataclass

LEVELS = 25
"""Steps of the ramp; the last is the accent itself."""


@dataclass(frozen=True)
class Theme:
    """One colour scheme: the OKLCH lightness and chroma of paper and accent, and the lightness of ink."""

    paper: tuple[float, float]
    accent: tuple[float, float]
    ink: float
    hue: float


LIGHT = Theme(paper=(0.995, 0.002), accent=(0.535, 0.175), ink=0.22, hue=35.0)
DARK = Theme(paper=(0.185, 0.005), accent=(0.77, 0.150), ink=0.93, hue=45.0)


def ramp(theme: Theme) -> list[tuple[str, str]]:
    """The `LEVELS` pairs (background, text) of `theme`, as `#rrggbb`, from paper to accent."""
    ink = _oklch(theme.ink, 0.005, theme.hue)
    paper = _oklch(*theme.paper, theme.hue)
    steps = []
    for level in range(LEVELS):
        part = level / (LEVELS - 1)
        lightness = theme.paper[0] + part * (theme.accent[0] - theme.paper[0])
        # Chroma comes in early, so that the middle steps are a colour and not a grey.
        chroma = theme.paper[1] + part**0.7 * (theme.accent[1] - theme.paper[1])
        background = _oklch(lightness, chroma, theme.hue)
        text = max(ink, paper, key=lambda colour: contrast(colour, background))
        steps.append((_hex(background), _hex(text)))
    return steps


def style_rules() -> str:
    """CSS: the properties `--s0`.. (background) and `--i0`.. (text) of both themes, and a class per step."""

    def properties(theme: Theme) -> str:
        pairs = enumerate(ramp(theme))
        return ":root{" + "".join(f"--s{n}:{back};--i{n}:{text};" for n, (back, text) in pairs) + "}"

    classes = "".join(f".s{n}{{background:var(--s{n});color:var(--i{n});fill:var(--s{n})}}\n" for n in range(LEVELS))
    return f"{properties(LIGHT)}\n@media (prefers-color-scheme:dark){{{properties(DARK)}}}\n{classes}"


def contrast(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """The contrast ratio of two sRGB colours in [0, 1] (WCAG 2): 1 for equal ones, 21 for black on white."""

    def luminance(colour: tuple[float, float, float]) -> float:
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _oklch(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """An OKLCH colour (hue in degrees) as sRGB in [0, 1], clipped to the gamut."""
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _encoded(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _encoded(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _encoded(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _encoded(linear: float) -> float:
    """The sRGB transfer function, clipped to [0, 1]."""
    linear = min(max(linear, 0.0), 1.0)
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def _hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour)
