"""Sends what the stand-ins tell: each letter signed anew at each try, and tried again until it is taken.

A letter is taken by an answer of 2xx in time. Waits between tries are the provider's, made shorter by
`speed`. What a network does to deliveries is asked for: `doubled` sends that share of them twice, `shuffled`
lets later ones go first, `held` keeps all of them back.
"""

import heapq
import itertools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic

import httpx

AT_ONCE = 8
SPREAD_SECONDS = 0.05  # within which shuffled letters change places


@dataclass(frozen=True, slots=True)
class Letter:
    """One delivery. `sign` gets the number of the try, from 0, and returns headers for the content."""

    name: str  # what it tells of, for whoever looks at what was sent
    url: str
    content: bytes
    content_type: str
    sign: Callable[[int], Mapping[str, str]]
    waits: Sequence[float]  # seconds before each further try
    timeout: float
    method: str = "POST"


@dataclass(slots=True)
class Sent:
    """What became of a letter: a status, or the name of an error, for each try."""

    letter: Letter
    tries: list[int | str] = field(default_factory=list)
    over: bool = False

    @property
    def taken(self) -> bool:
        return any(isinstance(each, int) and 200 <= each < 300 for each in self.tries)


class Courier:
    """Sends letters from threads of its own; the stand-in that wrote them goes on meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Sent]] = []
        self._under_way = 0
        self._started = False
        self.forget()

    def forget(self) -> None:
        """Drop all letters, and go by the provider's own times again."""
        with self._changed:
            self.sent: list[Sent] = []
            self._due.clear()
            self.speed, self.doubled, self.shuffled, self.held = 1.0, 0.0, False, False
            self._dice = random.Random(0)
            self._changed.notify_all()

    def behave(
        self,
        *,
        speed: float | None = None,
        doubled: float | None = None,
        shuffled: bool | None = None,
        held: bool | None = None,
        seed: int | None = None,
    ) -> None:
        """Change how letters travel; None leaves a thing as it is."""
        with self._changed:
            self.speed = self.speed if speed is None else speed
            self.doubled = self.doubled if doubled is None else doubled
            self.shuffled = self.shuffled if shuffled is None else shuffled
            self.held = self.held if held is None else held
            self._dice = self._dice if seed is None else random.Random(seed)
            self._changed.notify_all()

    def send(self, letter: Letter) -> None:
        """Take a letter; returns at once."""
        with self._changed:
            copies = 2 if self._dice.random() < self.doubled else 1
            for _ in range(copies):
                later = self._dice.random() * SPREAD_SECONDS if self.shuffled else 0.0
                sent = Sent(letter)
                self.sent.append(sent)
                self._put(sent, later)
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="courier", daemon=True).start()

    def again(self, sent: Sent) -> None:
        """Send a letter once more, as a provider may at any time."""
        self.send(sent.letter)

    def settled(self, seconds: float = 30.0) -> bool:
        """Wait until nothing is due or under way; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._under_way and (self.held or not self._due), seconds
            )

    def _put(self, sent: Sent, later: float) -> None:
        heapq.heappush(self._due, (monotonic() + later, next(self._numbers), sent))
        self._changed.notify_all()

    def _run(self) -> None:
        with httpx.Client(trust_env=False) as http, ThreadPoolExecutor(AT_ONCE) as pool:
            while True:
                pool.submit(self._deliver, http, self._next())

    def _next(self) -> Sent:
        with self._changed:
            while True:
                wait = self._due[0][0] - monotonic() if self._due and not self.held else None
                if wait is not None and wait <= 0 and self._under_way < AT_ONCE:
                    self._under_way += 1
                    return heapq.heappop(self._due)[2]
                self._changed.wait(None if wait is None else max(wait, 0.001))

    def _deliver(self, http: httpx.Client, sent: Sent) -> None:
        letter, number = sent.letter, len(sent.tries)
        headers = {"Content-Type": letter.content_type, **letter.sign(number)}
        outcome: int | str
        try:
            answer = http.request(
                letter.method, letter.url, content=letter.content, headers=headers, timeout=letter.timeout
            )
            outcome = answer.status_code
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        with self._changed:
            self._under_way -= 1
            sent.tries.append(outcome)
            sent.over = sent.taken or number >= len(letter.waits)
            if not sent.over and sent in self.sent:  # else all was forgotten meanwhile
                self._put(sent, letter.waits[number] / self.speed)
            self._changed.notify_all()
