"""Plots as inline SVG with HTML text around it.

The SVG of a plot stretches to whatever width it is given (lines keep their thickness), while labels and
ticks are HTML placed in percent, so they keep their size: one page reads well on a wide screen, on a phone
and on paper, and without any script. A small script adds tooltips, highlighting and the slider.
"""

from __future__ import annotations
