"""A TCP proxy that stands for a network, which may be cut or go silent."""

import socket
import struct
import threading
from contextlib import suppress


class Proxy:
    """Passes connections on to a port of this machine, as long as it is `open`."""

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._refuses = False
        self._connections: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Every connection is reset, and new ones are too."""
        self._refuses = True
        self._reset_all()

    def silence(self) -> None:
        """Nothing passes any more and nobody is told: packets are lost, connections seem to stand."""
        self._open.clear()

    def heal(self, forget: bool = False) -> None:
        """All passes again. What was sent during a silence arrives now, unless the connections are forgotten: then their
        ends get one reset each, which a lost packet may take away.
        """
        if forget:
            for connection in list(self._connections):
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._reset_all()
        self._refuses = False
        self._open.set()

    def close(self) -> None:
        """Ends it."""
        self._listener.close()
        self.heal(forget=True)

    def _reset_all(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                # Wakes the thread that reads, which then closes it.
                connection.shutdown(socket.SHUT_RD)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.wait()
        try:
            if self._refuses:
                raise OSError
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        self._connections |= {client, server}
        back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
        back.start()
        self._pass_on(client, server)
        back.join()
        self._connections -= {client, server}
        client.close()
        server.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                self._open.wait()
                target.sendall(content)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)
