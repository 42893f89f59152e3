"""The sockets that listen: taken once, by the process that starts the others, for HTTP and for gRPC alike."""

import socket

# What a client does not read stays in the process beyond this, where the write deadline sees it: the system would take
# an answer of megabytes, and keep it for as long as the client likes.
UNSENT_BYTES = 128 * 1024
BACKLOG = 2048  # connections that wait to be accepted, as in uvicorn


def bind(host: str, port: int, setting: str = "--port") -> socket.socket:
    """Return a socket that listens: from here on the port is ours, and clients that connect before all is loaded wait.

    Args:
        host: name or address.
        port: 0 takes a free one.
        setting: what an error tells the operator to change.

    Raises:
        OSError: the address is in use or not of this machine; the message is a sentence.
    """
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return _listen(socket.socket(info[0], info[1]), info[4])
    except OSError as err:
        raise OSError(f"cannot listen on {host}:{port}: {err.strerror or err}; choose another {setting}") from err


def _listen(listener: socket.socket, address: tuple[object, ...]) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener
