"""Points in a plane, a colour per group, the group's name at its middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import UNITS, Figure, coordinate
from megatron_moo.report.charts.scale import linear
from megatron_moo.report.records import Array


@dataclass(frozen=True)
class Cloud:
    """Points ``[n, 2]`` of one group; rows that are not finite are left out."""

    name: str
    points: Array
    classes: str


def scatter(spec: Figure, clouds: Sequence[Cloud]) -> Markup:
    """All clouds in one plane without ticks: only what lies beside what can be read from it."""
    known = [Cloud(c.name, c.points[np.isfinite(c.points).all(axis=1)], c.classes) for c in clouds]
    known = [cloud for cloud in known if len(cloud.points)]
    if not known:
        return frame.missing(spec, "Not measured in this run.")
    everything = np.concatenate([cloud.points for cloud in known])
    across, up = linear(everything[:, 0]), linear(everything[:, 1])
    dots, middles = [], []
    for cloud in known:
        x, y = across.share(cloud.points[:, 0]), 1 - up.share(cloud.points[:, 1])
        path = "".join(f"M{coordinate(a)} {coordinate(b)}h0" for a, b in zip(x, y, strict=True))
        dots.append(
            Markup('<path class="pt dots {}" data-n="{}" d="{}"/>').format(cloud.classes, cloud.name, path)
        )
        middles.append((float(np.median(x)), float(np.median(y))))
    # Names of clouds at one height are pushed apart, so that all can be read.
    tops = frame.spread([y * spec.height for _, y in middles], frame.LABEL_GAP, spec.height)
    names = [
        Markup('<span class="sl {}" data-n="{}" style="left:{:.2f}%;top:{:.2f}%">{}</span>').format(
            cloud.classes, cloud.name, 100 * x, 100 * top / spec.height, cloud.name
        )
        for cloud, (x, _), top in zip(known, middles, tops, strict=True)
    ]
    body = Markup(
        '<div class="scatter" style="--h:{0}px"><div class="area"><svg viewBox="0 0 {1} {1}" '
        'preserveAspectRatio="none" aria-hidden="true">{2}</svg>{3}</div></div>'
    ).format(spec.height, UNITS, Markup("").join(dots), Markup("").join(names))
    return frame.figure(spec, body)
