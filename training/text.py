"""Cutting off the end of a text, to measure on."""


def split_held_out(text: str, fraction: float) -> tuple[str, str]:
    """Cut the end off a text, to measure on what the model has not seen.

    The cut is at the first line border at or after the exact place, so that no line is
    torn; where that would halve the held-out part or more (a text of few, long lines), it
    is at the exact character. The two parts joined are the text.

    Args:
        text: at least two characters.
        fraction: share of the characters to hold out, between 0 and 1.

    Returns:
        The first part and the held-out part, neither of them empty.

    Raises:
        ValueError: the fraction is not between 0 and 1, or the text is too short.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"the held-out fraction must be between 0 and 1, not {fraction}")
    if len(text) < 2:
        raise ValueError(f"a text of {len(text)} characters cannot be cut in two")
    held_out_size = min(max(round(len(text) * fraction), 1), len(text) - 1)
    exact = len(text) - held_out_size
    border = text.find("\n", exact - 1) + 1
    is_near = border > 0 and len(text) - border > held_out_size / 2
    cut = border if is_near else exact
    return text[:cut], text[cut:]
