"""How a program that is run in a release gets a request, and answers; its own text follows."""

import json
import os
import time

# Of the whole project: in a PostgreSQL, one migration runs at a time.
LOCK = 0x76656E7673


def answer(main):
    """Put what `main` makes of the request, or why it fails, in the place of the request."""
    with os.fdopen(int(os.environ["VIRTUALENV_TOOLS_REQUEST"]), "r+", closefd=False) as file:
        request = json.load(file)
        try:
            found = main(request)
        except BaseException as error:  # SystemExit among them: the caller reports it
            words = " ".join(str(error).split())
            found = {"failure": ": ".join(filter(None, (type(error).__name__, words)))}
        file.seek(0)
        file.truncate()
        json.dump(found, file)


def acquire(attempt, seconds):
    """Call `attempt` until it has PostgreSQL's lock for migrations.

    It should be the lock of a transaction on a connection of its own: that ends with it, also
    behind a pooler. And it is tried again and again, as a connection that waits for it in the
    database keeps an index from being built concurrently, which waits for all others.
    """
    until = time.monotonic() + seconds
    while not attempt():
        if time.monotonic() >= until:
            raise RuntimeError(
                "another migration of this database is running, and was all of "
                f"{seconds:g} seconds; wait for it to end"
            )
        time.sleep(0.5)
