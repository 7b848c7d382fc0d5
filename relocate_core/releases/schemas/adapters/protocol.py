"""How a program that is run in a release is asked, and answers; this text goes before its own."""

import json
import os


def answer(main):
    """Put what `main` makes of the question, or why it fails, where the question stood."""
    with os.fdopen(int(os.environ["VIRTUALENV_TOOLS_ASKED"]), "r+", closefd=False) as file:
        asked = json.load(file)
        try:
            found = main(asked)
        except BaseException as error:  # SystemExit among them: whoever asks tells it
            words = " ".join(str(error).split())
            found = {"failure": ": ".join(filter(None, (type(error).__name__, words)))}
        file.seek(0)
        file.truncate()
        json.dump(found, file)
