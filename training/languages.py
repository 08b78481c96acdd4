"""Which languages a person's files are in, by their names."""

import re
from collections.abc import Sequence

_CODES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da "
    "de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy "
    "hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg "
    "li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or "
    "os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta "
    "te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
ISO_639_1 = frozenset(_CODES.split())


class LanguageError(ValueError):
    """The languages are not known, or are no codes; the message says what to give."""


def choose_languages(
    names: Sequence[str], source: str | None = None, target: str | None = None
) -> tuple[str, str]:
    """The codes of source and target: as given, else as the files' names say.

    Args:
        names: of one file of pairs (``corpus.en-fr.tsv``), or of the source's and the target's
            (``train.en``, ``train.fr.gz``).
        source: the source's code, if given.
        target: the target's.

    Raises:
        LanguageError: a code is missing and the names do not tell it, is malformed, or both
            are the same.
    """
    guessed = _codes_of_pairs(names[0]) if len(names) == 1 else [_code_of(name) for name in names]
    source, target = source or guessed[0], target or guessed[1]
    if not source or not target:
        raise LanguageError(
            f"{' and '.join(names)}: the name does not say which languages these are: give --from "
            "and --to, as in --from en --to fr"
        )
    for code in (source, target):
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
            raise LanguageError(f"{code!r} is no language code: write it as in en, fr or pt-BR")
    if source == target:
        raise LanguageError(f"source and target are both {source}: give --from and --to")
    return source, target


def _code_of(name: str) -> str | None:
    """The last part of a file's name that is a code, the first part left out."""
    parts = name.lower().split(".")[1:]
    return next((part for part in reversed(parts) if part in ISO_639_1), None)


def _codes_of_pairs(name: str) -> list[str | None]:
    for first, second in re.findall(r"(?:^|[._])([a-z]{2})-([a-z]{2})(?=[._]|$)", name.lower()):
        if first in ISO_639_1 and second in ISO_639_1:
            return [first, second]
    return [None, None]
