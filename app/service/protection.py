"""What a translation must not change: addresses, placeholders, numbers, markup, emoji."""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_PROTECTED = 64
"""Most spans of a caller's own in one request."""


# Unicode's two planes for private use: what they stand for only their writer knows.
STAND_INS_OF_MARKUP = range(0xF0000, 0xFFFFE)
OPENING_STAND_INS = range(0xF0000, 0xF5000)
"""Those of them that stand for tags which open an element."""
CLOSING_STAND_INS = range(0xF5000, 0xFA000)
"""Those that close one; what stands alone has the rest."""
POINT_STAND_INS = range(0xFA000, 0xFFFFE)
STAND_INS_OF_NAMES = range(0x100000, 0x10FFFE)


class SpanKind(enum.Enum):
    """What part a protected span has in its sentence."""

    MARKUP = "markup"
    """A tag or an emoji: it stands between words and is none."""
    NAME = "name"
    """An address, a placeholder or a caller's own span: it stands where a name could."""
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text that comes through as it is.

    Attributes:
        begin: its first character.
        end: the character behind its last.
        kind: what part it has in its sentence.
    """

    begin: int
    end: int
    kind: SpanKind


_PICTURES = (
    r"\u00A9\u00AE\u2122\u2190-\u21FF\u2300-\u23FF\u25A0-\u27BF\u2900-\u297F\u2B00-\u2BFF"
    r"\U0001F000-\U0001FAFF"
)
# No expression looks at a character more than a few times, whatever a client sends: none begins
# in the middle of what it could have begun earlier.
_MARKUP = (
    r"</?[A-Za-z][^<>]*>"  # tags
    rf"|[{chr(STAND_INS_OF_MARKUP[0])}-{chr(STAND_INS_OF_MARKUP[-1])}]"
    r"|[0-9#*]\uFE0F?\u20E3"  # keycaps
    rf"|[{_PICTURES}][{_PICTURES}\u200D\uFE0F\u20E3\U000E0020-\U000E007F]*"
)
_NAMES = (
    r"""(?:https?|ftp)://[^\s<>"']*[^\s<>"'.,;:!?)\]}]"""
    r"""|(?<!\w)www\.[^\s<>"']*[^\s<>"'.,;:!?)\]}]"""
    r"|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    rf"|[{chr(STAND_INS_OF_NAMES[0])}-{chr(STAND_INS_OF_NAMES[-1])}]"
    r"|\{\{[^{}]*\}\}"
    r"|\$?\{[\w.:]*\}"
    r"|%(?:\(\w+\)|\d+\$)?[-+#0]*+\d*+(?:\.\d++)?[sdiufgxXc@](?![A-Za-z])"
)
_NUMBERS = r"(?<!\w)(?<!\w[.,:/-])\d+(?:[.,:/-]\d+)*(?!\w)"


class Protection:
    """Finds what a translation must not change.

    Args:
        own: further spans of the caller, none of them empty; they win over all others.
    """

    def __init__(self, own: Sequence[str] = ()) -> None:
        longest_first = sorted(set(own), key=lambda span: (-len(span), span))
        names = "|".join([*map(re.escape, longest_first), _NAMES])
        self._pattern = re.compile(
            f"(?P<name>{names})|(?P<markup>{_MARKUP})|(?P<number>{_NUMBERS})"
        )

    def spans(self, text: str) -> list[Span]:
        """The protected spans of a text, in order; none overlaps another."""
        return [
            Span(*match.span(), SpanKind(match.lastgroup))
            for match in self._pattern.finditer(text)
            if match[0]
        ]

    def found(self, text: str) -> list[str]:
        """The same as strings."""
        return [text[span.begin : span.end] for span in self.spans(text)]
