"""The loop under waitress: its sockets on a selector, so that a connection that is silent costs nothing.

waitress asks every connection before every poll whether it wants to read or write; with thousands of agents, each on a
kept connection of its own, that is nearly all the work. Here a socket is asked again only after something has
happened to it: an event, a request that was answered, the upkeep that closes idle ones. `Loop.map` is what waitress
takes for its map of sockets. Everything but `touch` belongs to the thread `hub`.
"""

from __future__ import annotations

import select
import selectors
from collections import deque
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel

PAUSE = 30.0


class Loop:
    """See the module; `watch` names the server before the first `turn`."""

    def __init__(self) -> None:
        self.map: dict[int, Any] = _Map(self)
        self._selector = selectors.DefaultSelector()
        self._touched: deque[Any] = deque()  # of sockets that may want something else than before
        self._server: Any = None

    def watch(self, server: Any) -> None:
        """The server whose upkeep is due from time to time."""
        self._server = server

    def touch(self, each: Any) -> None:
        """Has a socket asked before the next wait; any thread."""
        self._touched.append(each)

    def turn(self) -> None:
        """Waits for events, and handles them."""
        self._upkeep()
        while self._touched:
            self._ask(self._touched.popleft())
        for key, events in self._selector.select(PAUSE):
            each = key.data
            if self.map.get(key.fd) is each:
                wasyncore.readwrite(each, _flags(events))
                self._touched.append(each)

    def forget(self, fd: int) -> None:
        """A socket is about to be closed."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def close(self) -> None:
        """Closes every socket."""
        wasyncore.close_all(self.map)
        self._selector.close()

    def _upkeep(self) -> None:
        due = self._server.next_channel_cleanup
        self._ask(self._server)
        if self._server.next_channel_cleanup != due:
            self._touched.extend(self.map.values())  # some of them are to be closed

    def _ask(self, each: Any) -> None:
        """What it waits for, from now on."""
        fd = each._fileno
        if fd not in self.map or self.map[fd] is not each:
            return  # closed meanwhile
        wanted = selectors.EVENT_READ if each.readable() else 0
        if each.writable() and not each.accepting:
            wanted |= selectors.EVENT_WRITE
        known = self._selector.get_map().get(fd)
        if known is None:
            if wanted:
                self._selector.register(fd, wanted, each)
        elif not wanted:
            self._selector.unregister(fd)
        elif known.events != wanted:
            self._selector.modify(fd, wanted, each)


class _Map(dict[int, Any]):
    """waitress puts a socket in when it is opened and takes it out before it is closed."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def __setitem__(self, fd: int, each: Any) -> None:
        super().__setitem__(fd, each)
        self._loop.touch(each)

    def __delitem__(self, fd: int) -> None:
        super().__delitem__(fd)
        self._loop.forget(fd)


class Side:
    """The server as one connection sees it: whoever wakes the loop says by that that the connection has changed."""

    __slots__ = ("_channel", "_loop", "_server")

    def __init__(self, server: Any, channel: HTTPChannel, loop: Loop) -> None:
        self._server = server
        self._channel = channel
        self._loop = loop

    def pull_trigger(self) -> None:
        """Called by a thread that has answered a request, or has written a part of its answer."""
        self._loop.touch(self._channel)
        self._server.pull_trigger()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


def _flags(events: int) -> int:
    """As waitress knows them; a selector tells a connection that was reset as one that can be read."""
    found = select.POLLIN if events & selectors.EVENT_READ else 0
    return found | select.POLLOUT if events & selectors.EVENT_WRITE else found
