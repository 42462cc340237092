"""How does one test speak through the synchronous and the asyncio client alike?"""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

from nvstream import AsyncClient, Client


class SyncDriver:
    """Plain calls."""

    def __init__(self, socket: Path) -> None:
        self._client = Client(socket)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """What the client's method returns."""
        return getattr(self._client, method)(*args, **options)

    def next(self, stream: Any) -> Any:
        """The next event."""
        return next(stream)

    def collect(self, stream: Any) -> list[Any]:
        """All events that are left."""
        return list(stream)

    def text(self, stream: Any) -> str:
        """The stream's text."""
        return str(stream.text())

    def leave(self, stream: Any) -> None:
        """Enters the stream's block, reads one event and leaves."""
        with stream:
            next(stream)

    def close(self) -> None:
        """Closes the client."""
        self._client.close()


class AsyncDriver:
    """The same calls on a loop that runs only while one of them does."""

    def __init__(self, socket: Path) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(socket))

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """What the client's method returns, awaited if it is to be."""

        async def go() -> Any:
            result = getattr(self._client, method)(*args, **options)
            return await result if inspect.isawaitable(result) else result

        return self._runner.run(go())

    def next(self, stream: Any) -> Any:
        """The next event."""
        return self._runner.run(stream.__anext__())

    def collect(self, stream: Any) -> list[Any]:
        """All events that are left."""

        async def go() -> list[Any]:
            return [event async for event in stream]

        return self._runner.run(go())

    def text(self, stream: Any) -> str:
        """The stream's text."""
        return str(self._runner.run(stream.text()))

    def leave(self, stream: Any) -> None:
        """Enters the stream's block, reads one event and leaves."""

        async def go() -> None:
            async with stream:
                await anext(stream)

        self._runner.run(go())

    def close(self) -> None:
        """Closes the client and the loop."""
        self._runner.run(self._client.close())
        self._runner.close()

    @staticmethod
    async def _make(socket: Path) -> AsyncClient:
        return AsyncClient(socket)
