"""The running requests of a batch, apart by the size of their sources."""

from models.decoding.running import Running
from models.state import AttentionMemory, MemoryPool


class Lane:
    """The running requests whose sources are padded to one size, with these sources.

    Sources of all lengths in one tensor would have most of the attention look at padding.

    Attributes:
        running: in the order of their rows, and of their sources in the pool.
        pool: their sources, or None for a model without attention.
    """

    def __init__(self) -> None:
        self.running: list[Running] = []
        self.pool: MemoryPool | None = None

    def part(self) -> None:
        """Part with the requests that have no rows.

        The last request takes the place of one that leaves, so that all others keep theirs.
        """
        if all(running.row_count for running in self.running):
            return
        places = list(range(len(self.running)))
        for place in reversed(range(len(self.running))):
            if self.running[place].row_count:
                continue
            last, origin = self.running.pop(), places.pop()
            if place < len(self.running):
                self.running[place], places[place] = last, origin
        if self.pool is not None:
            self.pool.keep(places)

    def memory(self) -> AttentionMemory | None:
        """The sources, as the rows see them."""
        if self.pool is None or not self.running:
            return None
        return self.pool.view([running.row_count for running in self.running])

    @property
    def positions(self) -> tuple[int, int]:
        """Positions that one attention looks at, padding included, and how many are padding."""
        return (0, 0) if self.pool is None else (self.pool.positions, self.pool.padding)
