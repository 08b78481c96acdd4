"""Looks for stop strings in a text that comes in pieces."""

from collections.abc import Sequence


class StopFinder:
    """Cuts a text before the first stop string, and holds back what may begin one.

    Args:
        stops: strings that end the text, none of them empty.

    Attributes:
        rest: what is neither given out nor part of a stop string that was found: what may begin
            one, or what follows the one that was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._searches = [_Search(stop) for stop in stops]
        self.rest = ""

    def add(self, piece: str, *, last: bool) -> tuple[str, bool]:
        """Take the next piece of the text; none may follow one in which a stop string was found.

        Args:
            piece: of the text.
            last: whether the text ends here.

        Returns:
            The text that is sure to stand before any stop string, and whether one was found.
        """
        text, before = self.rest + piece, len(self.rest)
        found = [place for search in self._searches if (place := search.add(piece)) is not None]
        if found:
            begin, end = min(found)
            self.rest = text[before + end :]
            return text[: before + begin], True
        held = 0 if last else max((search.matched for search in self._searches), default=0)
        sure = len(text) - held
        self.rest = text[sure:]
        return text[:sure], False


class _Search:
    """One string, sought by Knuth, Morris and Pratt's algorithm (1977).

    It looks at each character once, and knows at the end of every piece how much of the string
    the text ends with.

    Attributes:
        matched: length of the longest beginning of the string that the text ends with.
    """

    def __init__(self, string: str) -> None:
        self._string = string
        # For each beginning of the string the length of the next shorter one that it ends with.
        self._shorter = [0]
        for character in string[1:]:
            self._shorter.append(self._longer(self._shorter[-1], character))
        self.matched = 0

    def add(self, piece: str) -> tuple[int, int] | None:
        """Take the next piece; where in it the string began and ended, if it ended.

        It began at a negative place if it did before the piece.
        """
        for position, character in enumerate(piece):
            self.matched = self._longer(self.matched, character)
            if self.matched == len(self._string):
                return position + 1 - self.matched, position + 1
        return None

    def _longer(self, matched: int, character: str) -> int:
        """What is matched with one more character behind what was."""
        while matched and self._string[matched] != character:
            matched = self._shorter[matched - 1]
        return matched + (self._string[matched] == character)
