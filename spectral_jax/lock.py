"""One writer a folder: a lock that ends with its process, however that ends.

In a file system it is the system's own (`flock`), on a file that says who holds it; the system
lifts it when the process dies. NFS passes it on to the server, so that it holds between machines;
where a file system knows no locks, folders are treated as those of a store.

Object storage has no locks. There the holder writes its name and renews it; who finds a name waits
until it was not renewed for `LEASE_SECONDS`, and gives up where it is. Of several that write their
names at once, the one whose name is there a moment later goes on. A holder that was away for longer
(its machine slept) may find another's name and says so: until then both write.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

from etils import epath

from spectral_jax.files import is_on_store, write_text

FILE = ".lock"
LEASE_SECONDS = 90.0
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_held: dict[str, int] = {}  # by this process: the thread, by folder


class LockedError(OSError):
    """Another process writes to the folder."""


@contextlib.contextmanager
def only_writer(folder: epath.PathLike, *, wait: bool = False) -> Iterator[None]:
    """Makes this process the only one that writes to a folder, and makes the folder.

    In the thread that holds it already, it does nothing. In the end the folder is removed again, if
    it was made here and is empty.

    Args:
      folder: here or on object storage.
      wait: for another process to end, in the place of giving up.

    Raises:
      LockedError: if another process writes there; it names the host and the process.
    """
    name = os.fspath(folder) if is_on_store(folder) else os.path.realpath(folder)
    if _held.get(name) == threading.get_ident():
        yield
        return
    take = _lease if is_on_store(folder) else _file_lock
    with take(name, wait):
        _held[name] = threading.get_ident()
        try:
            yield
        finally:
            _held.pop(name, None)


@contextlib.contextmanager
def _file_lock(name: str, wait: bool) -> Iterator[None]:
    folder = pathlib.Path(name)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / FILE
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as opened:
                try:
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                except FileNotFoundError:  # whoever held the lock removed the folder
                    continue
                opened.callback(os.close, descriptor)
                try:
                    _flock(descriptor, folder, wait)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                    opened.enter_context(_lease(name, wait))
                    yield
                    return
                if not _is_file(descriptor, path):  # whoever held the lock removed it
                    continue
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps(_ourselves()).encode())
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)  # while it is held
                return
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not empty: it is used
                path.rmdir()


def _flock(descriptor: int, folder: pathlib.Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 10_000, 0)
        if not wait:
            raise _locked(folder, holder) from None
        logging.getLogger(__name__).warning("waiting: %s", _describe(folder, holder))
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_file(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _lease(name: str, wait: bool) -> Iterator[None]:
    file = epath.Path(name) / FILE
    ours = _ourselves() | {"token": secrets.token_hex(8)}
    ended = threading.Event()

    def write():
        write_text(file, json.dumps(ours | {"renewed": time.time()}))

    def others() -> bytes:
        """What is there if another wrote it."""
        try:
            found = file.read_bytes()
            return b"" if json.loads(found)["token"] == ours["token"] else found
        except FileNotFoundError:
            return b""
        except (ValueError, LookupError, TypeError):
            return found

    def renew():
        while not ended.wait(LEASE_SECONDS / 3):
            with contextlib.suppress(OSError):  # the store may be away for a moment
                if taken := others():
                    there = _describe(file.parent, taken)
                    logging.getLogger(__name__).error("%s as well as this one; stop one", there)
                    return
                write()

    while True:
        _wait_for_lease(file, wait)
        file.parent.mkdir(parents=True, exist_ok=True)
        write()
        time.sleep(LEASE_SECONDS / 45)
        if not others():
            break
    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        if not others():
            file.unlink(missing_ok=True)


def _wait_for_lease(file: epath.Path, wait: bool) -> None:
    """Returns when nobody renews the file; clocks of other machines do not matter."""
    known, since = b"", time.monotonic()
    told = False
    while file.exists():
        try:
            found = file.read_bytes()
        except FileNotFoundError:
            return
        if not found or _is_gone(found):  # opened by one that found no locks; or left behind
            return
        if not told:
            logging.getLogger(__name__).warning(
                "waiting up to %.0f s: %s", LEASE_SECONDS, _describe(file.parent, found)
            )
            told = True
        if found != known:
            if known and not wait:
                raise _locked(file.parent, found)
            known, since = found, time.monotonic()
        elif time.monotonic() - since > LEASE_SECONDS:
            return
        time.sleep(LEASE_SECONDS / 30)


def _is_gone(holder: bytes) -> bool:
    """Whether it is a process of this machine that is no more."""
    try:
        there = json.loads(holder)
        if there["host"] != socket.gethostname():
            return False
        os.kill(there["process"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, LookupError, TypeError, OSError):
        return False
    return bool(there["process"] == os.getpid())


def _ourselves() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "command": " ".join(sys.argv),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _describe(folder: epath.PathLike, holder: bytes) -> str:
    try:
        there = json.loads(holder)
        who = f"process {there['process']} on {there['host']} ({there['command']})"
    except (ValueError, LookupError, TypeError):
        who = "another process"
    return f"{os.fspath(folder)}: {who} writes there"


def _locked(folder: epath.PathLike, holder: bytes) -> LockedError:
    return LockedError(
        f"{_describe(folder, holder)}; wait until it has ended, stop it, or choose another folder"
    )
