"""How a program that is run in a release gets a request, and answers; its own text follows."""

import json
import os


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
