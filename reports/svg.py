"""How an SVG element is written: escaped, with short numbers."""

from collections.abc import Iterable

from markupsafe import Markup, escape

Attribute = str | float | None


def number(value: float) -> str:
    """The shortest text that keeps a hundredth: 3, 3.5, 3.25."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def element(name: str, /, *children: str | Markup, **attributes: Attribute) -> Markup:
    """One element. An attribute `class_` stands for class, `stroke_width` for stroke-width;
    None leaves it out. Children that are not Markup are escaped."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else number(value)
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    opening = " ".join(parts)
    if not children:
        return Markup(f"<{opening}/>")
    inside = Markup("").join(children)
    return Markup(f"<{opening}>{inside}</{name}>")


def group(children: Iterable[Markup], **attributes: Attribute) -> Markup:
    return element("g", Markup("").join(children), **attributes)


def title(text: str) -> Markup:
    """What a pointer that rests on the parent sees, and what a screen reader says."""
    return element("title", text)


def step_path(xs: list[float], ys: list[float]) -> str:
    """Path data of a staircase: level ys[i] from xs[i] to xs[i + 1]; len(xs) == len(ys) + 1.

    Equal neighbours are joined, so that a quiet run costs nothing.
    """
    parts = [f"M{number(xs[0])} {number(ys[0])}"]
    for index in range(1, len(ys)):
        if ys[index] != ys[index - 1]:
            parts.append(f"H{number(xs[index])}V{number(ys[index])}")
    parts.append(f"H{number(xs[-1])}")
    return "".join(parts)


def band_path(xs: list[float], lower: list[float], upper: list[float]) -> str:
    """Path data of the area between two staircases over the same `xs`."""
    back = [f"L{number(xs[-1])} {number(lower[-1])}"]
    for index in range(len(lower) - 1, 0, -1):
        if lower[index] != lower[index - 1]:
            back.append(f"H{number(xs[index])}V{number(lower[index - 1])}")
    back.append(f"H{number(xs[0])}Z")
    return step_path(xs, upper) + "".join(back)
