"""`RequestGate`: one cap on the requests of many queries, and who goes first.

A runner opens a gate for its event loop; every request of the loop takes a slot of it. Without a gate requests
go out at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass, field

_STAGES = {"policy": 0, "loss": 1, "gradient": 2, "update": 3}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: its query's turn, and how far that query is.

    Attributes:
        order: The query's place in the run, counted from 0.
        progress: Grows with every step of the loop; 0 for the first round.
    """

    order: int
    progress: int


@dataclass(slots=True)
class RequestGate:
    """At most ``limit`` requests at a time; of those that wait, the one of the query that is furthest goes first.

    Queries begun before fresh ones: runs finish early, not all at once. In the last stretch, when there are no
    fresh queries left to fill idle slots, the query with the most steps before it goes first instead, so
    that the run does not end on one long chain.

    Attributes:
        limit: Requests in flight at most.
        closed: Whether no further request may begin; set when a run winds up.
        last_stretch: Whether the order is turned round; the runner sets it.
        in_flight: Requests in flight now.
    """

    limit: int
    last_stretch: bool = False
    closed: bool = False
    in_flight: int = 0
    _waiting: dict[asyncio.Future[None], Place] = field(default_factory=dict, repr=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def __post_init__(self) -> None:
        """Begin with every slot free."""
        self._idle.set()

    async def wait_for_room(self) -> None:
        """Wait until a slot is free that nobody waits for."""
        await self._idle.wait()

    @contextlib.asynccontextmanager
    async def slot(self, place: Place) -> AsyncGenerator[None]:
        """Hold one slot inside the block."""
        if self.in_flight < self.limit and not self._waiting and not self.closed:
            self.in_flight += 1
        else:
            await self._queue(place)
        self._note_room()
        try:
            yield
        finally:
            self._release()

    async def _queue(self, place: Place) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = place
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # the slot was handed over just as the task was cancelled
            raise
        finally:
            self._waiting.pop(turn, None)

    def _release(self) -> None:
        ready = [turn for turn in self._waiting if not turn.done()]  # not those just cancelled
        if ready and not self.closed:
            sign = 1 if self.last_stretch else -1
            first = min(
                ready, key=lambda t: (sign * self._waiting[t].progress, self._waiting[t].order)
            )
            del self._waiting[first]
            first.set_result(None)  # the slot passes on: in_flight stays
        else:
            self.in_flight -= 1
        self._note_room()

    def _note_room(self) -> None:
        if self.in_flight < self.limit and not self._waiting:
            self._idle.set()
        else:
            self._idle.clear()


_gate: ContextVar[RequestGate | None] = ContextVar("tpo_request_gate", default=None)
_order: ContextVar[int] = ContextVar("tpo_query_order", default=0)
_halt: ContextVar[Callable[[], str | None]] = ContextVar("tpo_halt", default=lambda: None)


@contextlib.contextmanager
def gated(
    gate: RequestGate, order: int, halt: Callable[[], str | None] = lambda: None
) -> Generator[None]:
    """Let every request made inside the block, and in the tasks started there, take a slot of the gate.

    Args:
        gate: The gate.
        order: The query's place in the run.
        halt: Asked before each step of a loop; a reason ends the query there, with its best so far.
    """
    tokens = _gate.set(gate), _order.set(order), _halt.set(halt)
    try:
        yield
    finally:
        _gate.reset(tokens[0])
        _order.reset(tokens[1])
        _halt.reset(tokens[2])


def reason_to_halt() -> str | None:
    """Say why the run that this query belongs to wants it to end before its next step, or None."""
    return _halt.get()()


@contextlib.asynccontextmanager
async def request_slot(step: int, name: str) -> AsyncGenerator[None]:
    """Hold a slot of the gate that is open in this context, if one is."""
    gate = _gate.get()
    if gate is None:
        yield
        return
    place = Place(order=_order.get(), progress=4 * step + _STAGES.get(name, 0))
    async with gate.slot(place):
        yield
