"""Objects kept in order, so that paging costs the page and not the collection."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Json = dict[str, Any]
Rank = Any  # what a list is ordered by: seconds or an RFC 3339 text, one kind a list
Key = tuple[Rank, int, str]  # rank, arrival, id: unique, so a place in a list can be found again

_LAST = float("inf")


class Ordered:
    """Ids in the order of their rank; equal ranks stay in the order they arrived."""

    __slots__ = ("_arrivals", "_keys", "_places")

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._places: dict[str, Key] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._keys)

    def place(self, name: str) -> Key | None:
        """Return where `name` stands, or None when it is not in the list."""
        return self._places.get(name)

    def put(self, name: str, rank: Rank) -> Key:
        """Add `name`, or move it when it is there already; return its place."""
        self._arrivals += 1
        return self.adopt((rank, self._arrivals, name))

    def adopt(self, key: Key) -> Key:
        """Add a name at the place it has in another list."""
        self.remove(key[2])
        self._places[key[2]] = key
        insort(self._keys, key)
        return key

    def remove(self, name: str) -> None:
        """Take `name` out; nothing happens when it is not there."""
        key = self._places.pop(name, None)
        if key is not None:
            del self._keys[bisect_left(self._keys, key)]

    def walk(
        self,
        *,
        descending: bool = False,
        after: Key | None = None,
        at_least: Rank | None = None,
        at_most: Rank | None = None,
        skip: int = 0,
    ) -> Iterator[Key]:
        """Yield keys within the bounds (both included), beyond `after` in the chosen direction.

        `after` need not be in the list any more. The first `skip` keys of what is left are passed over.
        """
        keys: list[Any] = self._keys
        low, high = self._between(at_least, at_most)
        if after is not None and descending:
            high = min(high, bisect_left(keys, after))
        elif after is not None:
            low = max(low, bisect_right(keys, after))
        places = range(high - 1 - skip, low - 1, -1) if descending else range(low + skip, high)
        return (keys[place] for place in places)

    def count(self, *, at_least: Rank | None = None, at_most: Rank | None = None) -> int:
        """Return how many keys are within the bounds, both included."""
        low, high = self._between(at_least, at_most)
        return max(high - low, 0)

    def _between(self, at_least: Rank | None, at_most: Rank | None) -> tuple[int, int]:
        keys: list[Any] = self._keys
        low = 0 if at_least is None else bisect_left(keys, (at_least,))
        return low, len(keys) if at_most is None else bisect_left(keys, (at_most, _LAST))


class Shelf:
    """One collection: objects by id, in one or more orders, and looked up by some of their fields.

    `orders` and `indexes` name what is read from an object: a rank, or a value to look it up by.
    """

    __slots__ = ("_filed", "_index_of", "_main", "_rank_of", "indexes", "objects", "orders")

    def __init__(
        self,
        orders: Mapping[str, Callable[[Json], Rank]],
        indexes: Mapping[str, Callable[[Json], str | None]] | None = None,
    ) -> None:
        self._rank_of = orders
        self._index_of = indexes or {}
        self._main = next(iter(orders))
        self._filed: dict[tuple[str, str], str] = {}
        self.objects: dict[str, Json] = {}
        self.orders: dict[str, Ordered] = {name: Ordered() for name in orders}
        self.indexes: dict[str, dict[str, Ordered]] = {name: {} for name in self._index_of}

    def get(self, name: str) -> Json | None:
        """Return the object, or None."""
        return self.objects.get(name)

    def put(self, name: str, value: Json) -> None:
        """Store a new object, or one that replaces or is an altered old one."""
        self.objects[name] = value
        for order, rank_of in self._rank_of.items():
            rank, ordered = rank_of(value), self.orders[order]
            place = ordered.place(name)
            if place is None or place[0] != rank:
                ordered.put(name, rank)
        for index, value_of in self._index_of.items():
            self._file(index, name, value_of(value))

    def remove(self, name: str) -> Json | None:
        """Take the object out and return it."""
        for index in self._index_of:
            self._file(index, name, None)
        for ordered in self.orders.values():
            ordered.remove(name)
        return self.objects.pop(name, None)

    def listed(self, index: str, value: str) -> Ordered:
        """Return the ids whose indexed field has this value, in the first order given."""
        return self.indexes[index].get(value) or Ordered()

    def _file(self, index: str, name: str, value: str | None) -> None:
        old = self._filed.get((index, name))
        if old == value:
            return
        if old is not None:
            del self._filed[index, name]
            self.indexes[index][old].remove(name)
        if value is not None:
            place = self.orders[self._main].place(name)
            assert place is not None, "orders are written before indexes"
            self._filed[index, name] = value
            self.indexes[index].setdefault(value, Ordered()).adopt(place)
