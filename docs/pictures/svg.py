"""Drawing for the pictures in ``docs/images``: boxes, wires and labels as SVG.

A picture carries its own background and follows the reader's light or dark colours, so that it can
be read on a page of either kind. Lengths are in SVG's units, which are pixels at full size.
"""

import re
from collections.abc import Sequence
from typing import Literal
from xml.sax.saxutils import escape

Ink = Literal["ink", "panel", "muted", "blue", "orange", "green", "purple", "red"]
"""The colours of a picture; each has a light and a dark form."""
Point = tuple[float, float]

_STYLE = """
  svg { --panel: #ffffff; --edge: #d0d7de; --ink: #1f2328; --muted: #656d76; --box: #f6f8fa;
    --blue: #0a57c2; --orange: #b04a00; --green: #1a7f37; --purple: #7c3aad; --red: #c4232e;
    font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
  @media (prefers-color-scheme: dark) {
    svg { --panel: #0d1117; --edge: #30363d; --ink: #e6edf3; --muted: #9198a1; --box: #161b22;
      --blue: #6cb0ff; --orange: #ffab62; --green: #56d364; --purple: #d2a8ff; --red: #ff8e88; }
  }
"""
_SCRIPT = re.compile(r"([_^])(?:\{([^}]*)\}|(\S))")
_CORNER = 8
_HEAD = 8.0


class Picture:
    """A picture that is being drawn; what is drawn later lies on top.

    Args:
        title: what it shows, in a sentence, for whoever cannot see it.
        width: of the picture.
        height: of the picture.
    """

    def __init__(self, title: str, width: int, height: int) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">\n'
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n"
        )
        self._parts: list[str] = []
        self._dots: list[str] = []
        self.rect(0.5, 0.5, width - 1, height - 1, fill="var(--panel)", stroke="var(--edge)")

    def svg(self) -> str:
        """The picture as a file's text."""
        return self._head + "\n".join(self._parts + self._dots) + "\n</svg>\n"

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "none",
        stroke: str = "none",
        dashed: bool = False,
        opacity: float = 1.0,
    ) -> None:
        """A rectangle with round corners, its colours as CSS has them."""
        radius = min(_CORNER, height / 4, width / 4)
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"'
            + (' stroke-dasharray="6 4"' if dashed else "")
            + (f' fill-opacity="{opacity:g}"' if opacity < 1 else "")
            + "/>"
        )

    def box(
        self,
        center: Point,
        label: str,
        *,
        width: float = 84,
        height: float = 50,
        ink: Ink = "ink",
        note: str = "",
    ) -> None:
        """A box around its centre with a label and, below that, a note."""
        x, y = center
        self.rect(
            x - width / 2,
            y - height / 2,
            width,
            height,
            fill="var(--box)",
            stroke=f"var(--{ink})",
        )
        self.text((x, y - 7 if note else y), label, ink=ink, size=15)
        if note:
            self.text((x, y + 12), note, ink="muted", size=12)

    def knob(self, center: Point, sign: str, *, ink: Ink = "ink") -> None:
        """A small circle: an operation on each number of a vector."""
        x, y = center
        self._parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="14" fill="var(--box)" stroke="var(--{ink})" '
            'stroke-width="1.5"/>'
        )
        self.text(center, sign, ink=ink, size=16)

    def dot(self, center: Point, *, ink: Ink = "ink") -> None:
        """Where a wire branches; it lies on top of all wires."""
        x, y = center
        self._dots.append(f'<circle cx="{x:g}" cy="{y:g}" r="3.5" fill="var(--{ink})"/>')

    def wire(
        self,
        points: Sequence[Point],
        *,
        ink: Ink = "ink",
        arrow: bool = True,
        dashed: bool = False,
        width: float = 2.0,
    ) -> None:
        """A line through points, with an arrow at its end; it passes over what it crosses."""
        *before, last = points
        if arrow:
            (x, y), (end_x, end_y) = before[-1], last
            length = max(1e-9, ((end_x - x) ** 2 + (end_y - y) ** 2) ** 0.5)
            way_x, way_y = (end_x - x) / length, (end_y - y) / length
            back = (end_x - way_x * _HEAD, end_y - way_y * _HEAD)
            side = (-way_y * _HEAD * 0.55, way_x * _HEAD * 0.55)
            one, other = ((back[0] + s * side[0], back[1] + s * side[1]) for s in (1, -1))
            head = (last, one, other)
            last = back
        path = "M" + " L".join(f"{x:.6g} {y:.6g}" for x, y in (*before, last))
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="var(--panel)" stroke-width="{width + 5:g}"/>'
        )
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="var(--{ink})" stroke-width="{width:g}" '
            'stroke-linejoin="round"' + (' stroke-dasharray="5 4"' if dashed else "") + "/>"
        )
        if arrow:
            corners = " ".join(f"{x:.6g},{y:.6g}" for x, y in head)
            self._parts.append(f'<polygon points="{corners}" fill="var(--{ink})"/>')

    def text(
        self,
        at: Point,
        label: str,
        *,
        ink: Ink = "ink",
        size: float = 14,
        anchor: Literal["start", "middle", "end"] = "middle",
        bold: bool = False,
    ) -> None:
        """A label, its middle at a height; ``H_{t-1}`` and ``X^T`` have their small letters."""
        x, y = at
        self._parts.append(
            f'<text x="{x:g}" y="{y + size * 0.35:g}" fill="var(--{ink})" font-size="{size:g}" '
            f'text-anchor="{anchor}"'
            + (' font-weight="600"' if bold else "")
            + f">{_with_scripts(label, size)}</text>"
        )


def _with_scripts(label: str, size: float) -> str:
    """A label in which ``_`` and ``^`` begin small letters, below or above."""
    written, begin = "", 0
    for match in _SCRIPT.finditer(label):
        shift = size * (0.28 if match[1] == "_" else -0.38)
        small = escape(match[2] if match[2] is not None else match[3])
        written += escape(label[begin : match.start()])
        written += f'<tspan dy="{shift:g}" font-size="{size * 0.72:g}">{small}</tspan>'
        # The way back needs a character to hang on, which must not be seen.
        written += f'<tspan dy="{-shift:g}">&#8203;</tspan>'
        begin = match.end()
    return written + escape(label[begin:])
