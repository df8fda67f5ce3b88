"""Colours that colour-blind readers can tell apart, for light and for dark pages.

Categories use Okabe and Ito's hues (J*FLY, 2008), darkened or lightened until lines stand out from the page;
dashes and direct labels carry the identity too. Ordered values use one hue from the page's colour outwards;
signed values run from orange (negative) to blue (positive) through the page's colour, a pair that all common
kinds of colour vision tell apart.
"""

from __future__ import annotations

CATEGORIES = 8
DASHES = 3
DIVERGING = 21  # levels; odd, so that zero has one of its own
SEQUENTIAL = 16
DEPTHS = 12  # colours for an ordered set of lines

_LIGHT = ("#0072b2", "#d55e00", "#007a5a", "#b5518d", "#2f94cf", "#a87400", "#6a4fb3", "#555555")
_DARK = ("#4da3e0", "#ff8a3d", "#2fc796", "#e58fc0", "#8fd0f7", "#e5b13a", "#b09cf0", "#b4b4b4")
_DIVERGING_LIGHT = ("#8a2d04", "#d1571f", "#f0a878", "#f3f1ec", "#9dc4e3", "#3a80ba", "#0a3f78")
_DIVERGING_DARK = ("#ffb48a", "#d9652a", "#6d3518", "#22262d", "#1f486b", "#3585c6", "#a2d4ff")
_ORANGE_LIGHT = ("#f5f2ec", "#f3c39d", "#dd7433", "#a3400b", "#5e2005")
_ORANGE_DARK = ("#22262d", "#5f3319", "#b5561f", "#f28f4f", "#ffd3b3")
_BLUE_LIGHT = ("#f2f3f1", "#add0e8", "#5499cb", "#1c62a0", "#08305f")
_BLUE_DARK = ("#22262d", "#1c4465", "#2c78b3", "#6fb6ee", "#cfe8ff")
_DEPTH_LIGHT = ("#a87b00", "#5f9130", "#2f9c8a", "#2b6ea6", "#3d2f80")
_DEPTH_DARK = ("#f2d65c", "#a5d177", "#4cc9b0", "#5aa2e0", "#9d8cf2")


def category(index: int) -> str:
    """CSS classes of the ``index``-th category: a hue, and dashes when the hues begin again."""
    return f"c{index % CATEGORIES} d{index // CATEGORIES % DASHES}"


def depth(index: int, count: int) -> str:
    """CSS classes of the ``index``-th of ``count`` ordered lines."""
    level = round(index * (DEPTHS - 1) / max(1, count - 1)) if count > 1 else DEPTHS // 2
    return f"p{level} d0"


def variables(dark: bool) -> str:
    """CSS custom properties of one colour scheme."""
    ramps = {
        "c": _DARK if dark else _LIGHT,
        "v": ramp(_DIVERGING_DARK if dark else _DIVERGING_LIGHT, DIVERGING),
        "o": ramp(_ORANGE_DARK if dark else _ORANGE_LIGHT, SEQUENTIAL),
        "b": ramp(_BLUE_DARK if dark else _BLUE_LIGHT, SEQUENTIAL),
        "p": ramp(_DEPTH_DARK if dark else _DEPTH_LIGHT, DEPTHS),
    }
    return "".join(
        f"--{name}{i}:{colour};" for name, colours in ramps.items() for i, colour in enumerate(colours)
    )


def rules() -> str:
    """CSS rules that give each class its colour as ``--k``, which lines, areas and labels use."""
    counts = {"c": CATEGORIES, "v": DIVERGING, "o": SEQUENTIAL, "b": SEQUENTIAL, "p": DEPTHS}
    return "".join(
        f".{name}{i}{{--k:var(--{name}{i})}}" for name, count in counts.items() for i in range(count)
    )


def ramp(anchors: tuple[str, ...], levels: int) -> tuple[str, ...]:
    """``levels`` colours through the anchors, evenly spaced."""
    points = [tuple(int(anchor[i : i + 2], 16) for i in (1, 3, 5)) for anchor in anchors]
    colours = []
    for level in range(levels):
        place = level * (len(points) - 1) / (levels - 1)
        left = min(int(place), len(points) - 2)
        mixed = (a + (b - a) * (place - left) for a, b in zip(points[left], points[left + 1], strict=True))
        colours.append("#" + "".join(f"{round(channel):02x}" for channel in mixed))
    return tuple(colours)
